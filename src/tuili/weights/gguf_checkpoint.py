"""A GGUF model as a checkpoint. Knows GGUF's metadata keys beyond the architecture's own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tuili.errors import ModelFileError
from tuili.models import families
from tuili.models.gguf_config import gguf_config
from tuili.models.names import ROPE_VECTORS, table_for
from tuili.quant.format import Tensor
from tuili.weights.contents import Checkpoint, token_ids
from tuili.weights.gguf_parts import read_gguf
from tuili.weights.loader import Conventions, canonical_weights

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_MAX_FREQUENCIES = 1 << 16


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file, with its other parts. Raises what read_gguf raises, ModelFileError for no complete model."""
    file = read_gguf(path)
    path, metadata = file.path, file.metadata
    _check_vocabulary(metadata, path.name)
    family = families.for_gguf(_text(metadata, "general.architecture", path.name))
    vectors = {name: _rope_vector(name, file.tensors[name], path.name) for name in ROPE_VECTORS if name in file.tensors}
    config = gguf_config(metadata, file.tensors, vectors)
    spec = families.read_spec(family, config)
    conventions = Conventions(
        names=table_for(family.GGUF_NAMES, spec), transforms=family.GGUF_TRANSFORMS, ignored=family.GGUF_IGNORED
    )
    return Checkpoint(
        path=path,
        source="gguf",
        spec=spec,
        weights=canonical_weights(file.tensors, spec, conventions, path.name),
        config=metadata,
        generation_config=_generation_config(metadata),
        bos_token_ids=_token_ids(metadata, ("bos",), spec.vocab_size, path.name),
        eos_token_ids=_token_ids(metadata, ("eos", "eot", "eom"), spec.vocab_size, path.name),
        num_bytes=file.num_bytes,
        license=_license(metadata),
    )


def _text(metadata: Mapping[str, Any], key: str, file_name: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str):
        found = "is missing" if value is None else f"is {value!r:.80}"
        raise ModelFileError(f"{file_name}: {key} {found}, a string is expected")
    return value


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {hf: metadata.get(f"general.sampling.{key}") for key, hf in _SAMPLING.items()}
    return {name: _shortest(value) for name, value in found.items() if value is not None}


def _shortest(value: Any) -> Any:
    """A float32 as the decimal somebody wrote: 0.6, not 0.6000000238."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_vector(name: str, tensor: Tensor, file_name: str) -> list[float]:
    """What rotary frequencies are divided by. Bounded before it is read, as all that becomes Python objects."""
    if len(tensor.shape) != 1 or tensor.shape[0] > _MAX_FREQUENCIES:
        found = f"tensor {name} has shape {list(tensor.shape)}"
        raise ModelFileError(f"{file_name}: {found}, a vector of at most {_MAX_FREQUENCIES} is allowed")
    values: list[float] = tensor.dequantize().tolist()
    return values


def _check_vocabulary(metadata: Mapping[str, Any], file_name: str) -> None:
    """What a vocabulary holds is the text layer's business; that it has a size is needed here."""
    tokens = metadata.get(key := "tokenizer.ggml.tokens")
    if tokens is not None and not isinstance(tokens, list):
        raise ModelFileError(f"{file_name}: {key} is {tokens!r:.80}, an array of strings is expected")


def _token_ids(metadata: Mapping[str, Any], roles: tuple[str, ...], vocab_size: int, file_name: str) -> tuple[int, ...]:
    """The ids given to `roles`. Chat models may end turns with other tokens too: the text layer finds those."""
    keys = [f"tokenizer.ggml.{role}_token_id" for role in roles]
    found = [token_ids(metadata.get(key), key, vocab_size, file_name) for key in keys]
    return tuple(dict.fromkeys(chain.from_iterable(found)))


def _license(metadata: Mapping[str, Any]) -> str | None:
    names = (metadata.get(key) for key in ("general.license.name", "general.license"))
    return next((name for name in names if isinstance(name, str) and name), None)
