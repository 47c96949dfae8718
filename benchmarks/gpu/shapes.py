"""Models made from a seed: Qwen3's shapes with random weights, in memory or as a folder. What a step must move and do.

Matrices repeat a bank of random numbers whose length is no multiple of their rows': speed does not depend on values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tuili.models import families
from tuili.models.hf_config import hf_config
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant import BY_NAME
from tuili.quant.format import Bytes, Tensor

_BANK_LENGTH = (1 << 24) + 3571
_SAMPLE_ROWS = 61  # of quantized matrices, which repeat them
_STD = 0.02
_COMMON: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
_BIG = {"num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32}
_TINY = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "Qwen3-1.7B": _COMMON
    | {"num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16},
    "Qwen3-8B": _COMMON | _BIG | {"tie_word_embeddings": False},
    "tiny": _COMMON | _TINY | {"num_key_value_heads": 2, "vocab_size": 1024},
}


def model_spec(name: str) -> ModelSpec:
    return families.read_spec(families.for_hf("qwen3"), hf_config(CONFIGS[name]))


class RandomWeights(Mapping[str, Tensor]):
    """A model's weights, each made when it is read: matrices in `format_name`, vectors of ones."""

    def __init__(self, spec: ModelSpec, format_name: str = "BF16") -> None:
        self._shapes = tensor_shapes(spec)
        self._places = {name: i for i, name in enumerate(self._shapes)}
        self._format = BY_NAME[format_name]

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            ones = BY_NAME["BF16"].quantize(np.ones((1, shape[0]), np.float32))
            return Tensor(BY_NAME["BF16"], shape, ones)
        if self._format.name != "BF16":
            sample = _sample(self._format.name, shape[1])
            return Tensor(
                self._format, shape, np.resize(np.roll(sample, self._places[name], 0), (shape[0], sample.shape[1]))
            )
        start = self._places[name] * 7919 % _BANK_LENGTH
        values = np.resize(_bank()[start:], math.prod(shape)) if math.prod(shape) > _BANK_LENGTH - start else None
        data = _bank()[start : start + math.prod(shape)] if values is None else values
        return Tensor(self._format, shape, data.view(np.uint8).reshape(shape[0], -1))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@cache
def _bank() -> np.ndarray[Any, np.dtype[np.uint16]]:
    values = np.random.default_rng(0).standard_normal(_BANK_LENGTH, np.float32) * np.float32(_STD)
    return BY_NAME["BF16"].quantize(values[None])[0].view(np.uint16)


@cache
def _sample(format_name: str, cols: int) -> Bytes:
    values = np.random.default_rng(cols).standard_normal((_SAMPLE_ROWS, cols), np.float32) * np.float32(_STD)
    return BY_NAME[format_name].quantize(values)


def write_folder(name: str, folder: Path) -> None:
    """config.json and model.safetensors of a shape in bfloat16, as transformers and tuili read them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    weights = RandomWeights(model_spec(name))
    header, end = {}, 0
    for key, shape in tensor_shapes(model_spec(name)).items():
        size = 2 * math.prod(shape)
        header[_file_name(key)] = {"dtype": "BF16", "shape": shape, "data_offsets": (end, end + size)}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in weights:
            file.write(weights[key].data.data)


def _file_name(name: str) -> str:
    """A canonical name as Qwen3's files have it."""
    if not name.startswith("layers."):
        return name if name.startswith("lm_head") else f"model.{name}"
    prefix, index, leaf, kind = name.split(".")
    rooms = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    room = rooms.get(leaf) or f"{'mlp' if leaf in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{leaf}"
    return f"model.{prefix}.{index}.{room}.{kind}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step cannot do without: bytes read and operations."""

    num_bytes: float
    operations: float


def decode_cost(spec: ModelSpec, weight_bytes: int, batch: int, context: int, cache_itemsize: int = 2) -> Cost:
    """One token for each of `batch` texts of `context` tokens; weight_bytes are those of the whole model."""
    read = weight_bytes if spec.tie_word_embeddings else weight_bytes * (1 - _table(spec) / _num_weights(spec))
    attentions = _attentions(spec)
    cached = sum(2 * a.num_kv_heads * a.head_dim for a in attentions) * cache_itemsize * batch * context
    mixing = sum(4 * a.num_heads * a.head_dim for a in attentions) * batch * context
    return Cost(read + cached, 2.0 * batch * _multiplied(spec) + mixing)


def prefill_cost(spec: ModelSpec, weight_bytes: int, batch: int, length: int) -> Cost:
    """`batch` prompts of `length` tokens; the head runs for the last of each."""
    mixing = sum(4 * a.num_heads * a.head_dim for a in _attentions(spec)) * batch * length * (length + 1) / 2
    products = 2.0 * batch * (length * (_multiplied(spec) - _table(spec)) + _table(spec))
    return Cost(weight_bytes, products + mixing)


def _attentions(spec: ModelSpec) -> list[AttentionSpec]:
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]


def _table(spec: ModelSpec) -> int:
    return spec.vocab_size * spec.hidden_size


def _num_weights(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(spec).values())


def _multiplied(spec: ModelSpec) -> int:
    """Weights that each token is multiplied with: all matrices, an embedding table only where it is the head too."""
    return _num_weights(spec) - (0 if spec.tie_word_embeddings else _table(spec))
