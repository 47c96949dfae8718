"""A GGUF file as a checkpoint. Knows GGUF's metadata keys beyond the architecture's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models import families
from tuili.models.reader import gguf_config
from tuili.quant.format import Tensor
from tuili.weights.contents import Checkpoint, token_ids
from tuili.weights.gguf import GgufFile
from tuili.weights.loader import Conventions, canonical_weights

_FREQUENCY_DIVISORS = "rope_freqs.weight"
_TEMPLATE = "tokenizer.chat_template"
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
# GGUF names one end-of-text token, chat models end their turns with another: as llama.cpp does, known ones
# are found by their text among the control tokens.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
_TOKENS, _TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_CONTROL = 3  # the token type
_MAX_FREQUENCIES = 1 << 16


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file. Raises what GgufFile raises, and ModelFileError when it is no complete model."""
    file = GgufFile(path)
    metadata = file.metadata
    _refuse_split(metadata, path.name)
    control_tokens = _control_tokens(metadata, path.name)
    family = families.for_gguf(_text(metadata, "general.architecture", path.name))
    config = gguf_config(metadata, file.tensors)
    if _FREQUENCY_DIVISORS in file.tensors:
        config["rope_frequency_divisors"] = _frequency_divisors(file.tensors[_FREQUENCY_DIVISORS], path.name)
    spec = families.read_spec(family, config)
    conventions = Conventions(names=family.GGUF_NAMES, transforms=family.GGUF_TRANSFORMS, ignored=family.GGUF_IGNORED)
    return Checkpoint(
        path=path,
        source="gguf",
        spec=spec,
        weights=canonical_weights(file.tensors, spec, conventions, path.name),
        config=metadata,
        generation_config=_generation_config(metadata),
        bos_token_ids=token_ids(metadata.get(key := "tokenizer.ggml.bos_token_id"), key, spec.vocab_size, path.name),
        eos_token_ids=_eos_token_ids(metadata, control_tokens, spec.vocab_size, path.name),
        num_bytes=file.num_bytes,
        chat_templates=_chat_templates(metadata, path.name),
        license=_license(metadata),
    )


def _text(metadata: Mapping[str, Any], key: str, file_name: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str):
        found = "is missing" if value is None else f"is {value!r:.80}"
        raise ModelFileError(f"{file_name}: {key} {found}, a string is expected")
    return value


def _refuse_split(metadata: Mapping[str, Any], file_name: str) -> None:
    if (count := metadata.get("split.count", 1)) not in (0, 1):
        raise UnsupportedModelError(f"{file_name}: one of {count} parts of a split file, merge them into one first")


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {hf: metadata.get(f"general.sampling.{key}") for key, hf in _SAMPLING.items()}
    return {name: _shortest(value) for name, value in found.items() if value is not None}


def _shortest(value: Any) -> Any:
    """A float32 as the decimal somebody wrote: 0.6, not 0.6000000238."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _frequency_divisors(tensor: Tensor, file_name: str) -> list[float]:
    """What each rotary frequency is divided by. Bounded before it is read, as all that becomes Python objects."""
    if len(tensor.shape) != 1 or tensor.shape[0] > _MAX_FREQUENCIES:
        found = f"tensor {_FREQUENCY_DIVISORS} has shape {list(tensor.shape)}"
        raise ModelFileError(f"{file_name}: {found}, a vector of at most {_MAX_FREQUENCIES} is allowed")
    divisors: list[float] = tensor.dequantize().tolist()
    return divisors


def _control_tokens(metadata: Mapping[str, Any], file_name: str) -> dict[str, int]:
    """Text -> id of the vocabulary's control tokens."""
    tokens, kinds = metadata.get(_TOKENS, []), metadata.get(_TOKEN_TYPES, [])
    for key, value, item_type in ((_TOKENS, tokens, str), (_TOKEN_TYPES, kinds, int)):
        if not isinstance(value, list) or (value and type(value[0]) is not item_type):
            raise ModelFileError(f"{file_name}: {key} is {value!r:.80}, an array of {item_type.__name__} is expected")
    if kinds and len(kinds) != len(tokens):
        raise ModelFileError(f"{file_name}: {_TOKEN_TYPES} has {len(kinds)} elements, {len(tokens)} are needed")
    return {tokens[token_id]: token_id for token_id, kind in enumerate(kinds) if kind == _CONTROL}


def _eos_token_ids(
    metadata: Mapping[str, Any], control_tokens: Mapping[str, int], vocab_size: int, file_name: str
) -> tuple[int, ...]:
    ids: list[int] = []
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        ids += token_ids(metadata.get(f"tokenizer.ggml.{key}"), f"tokenizer.ggml.{key}", vocab_size, file_name)
    turn_ends = [control_tokens[text] for text in _TURN_ENDS if text in control_tokens]
    return tuple(dict.fromkeys(ids + [token_id for token_id in turn_ends if token_id < vocab_size]))


def _chat_templates(metadata: Mapping[str, Any], file_name: str) -> dict[str, str]:
    templates = {}
    for key in metadata:
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."):
            templates[key[len(_TEMPLATE) + 1 :] or "default"] = _text(metadata, key, file_name)
    return templates


def _license(metadata: Mapping[str, Any]) -> str | None:
    names = (metadata.get(key) for key in ("general.license.name", "general.license"))
    return next((name for name in names if isinstance(name, str) and name), None)
