"""What a checkpoint holds, whichever way it was packed: spec, canonical weights, end ids, license.

Knows neither GGUF nor Hugging Face folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuili.errors import ModelFileError
from tuili.models.spec import ModelSpec
from tuili.weights.tensor_table import TensorTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """An opened model. Its weights are views of mapped files, transformed when they are asked for.

    config:            config.json as it is, or GGUF's metadata.
    eos_token_ids:     as the files' configuration names them; the vocabulary may hold more that end a turn.
    generation_config: sampling defaults and limits under the names of generation_config.json.
    num_bytes:         size of the files that hold the weights.
    left_out:          the files' names of tensors that no part of ours runs, as of a vision tower.
    """

    path: Path
    source: Literal["gguf", "huggingface"]
    spec: ModelSpec
    weights: TensorTable
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    bos_token_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    num_bytes: int
    left_out: tuple[str, ...] = ()
    license: str | None = None
    license_text: str | None = None


def token_ids(value: object, key: str, vocab_size: int, file_name: str) -> tuple[int, ...]:
    """One id, a list of ids or null -> distinct ids in order. Raises ModelFileError for ids outside the vocabulary."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
            raise ModelFileError(f"{file_name}: {key} is {value!r:.80}, ids in [0, {vocab_size}) are allowed")
    return tuple(dict.fromkeys(ids))
