"""Small specs put together by hand and seeded random weights for any of them, in any format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec
from tuili.quant import BY_NAME
from tuili.quant.format import QuantFormat, Tensor

ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, rope=RopeSpec(dim=16))
MLP = MlpSpec(intermediate_size=96)


def layer(mlp: MlpSpec = MLP, layer_changes: dict[str, Any] | None = None, **attention: Any) -> LayerSpec:
    """A layer whose attention differs from ATTENTION as said."""
    return LayerSpec(mixer=replace(ATTENTION, **attention), mlp=mlp, **(layer_changes or {}))


def decoder(*layers: LayerSpec, **changes: Any) -> ModelSpec:
    """Two plain layers, or those given."""
    fields: dict[str, Any] = {"family": "test", "vocab_size": 101, "hidden_size": 64, "max_position": 4096}
    return ModelSpec(layers=layers or (layer(), layer()), **fields | changes)


def random_weights(spec: ModelSpec, format_name: str = "F32", *, seed: int = 0, **formats: str) -> dict[str, Tensor]:
    """Matrices in `format_name`, except leaves (q_proj=...) given their own; vectors in float32."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(spec).items():
        values = generator.standard_normal(shape, np.float32)
        if len(shape) == 1 or name.endswith("norm.weight"):
            values = values * np.float32(0.2) + np.float32(name.endswith("norm.weight"))
            weights[name] = quantized(BY_NAME["F32"], values)
        else:
            leaf = name.split(".")[-2]
            weights[name] = quantized(BY_NAME[formats.get(leaf, format_name)], values * np.float32(shape[1] ** -0.5))
    return weights


def quantized(fmt: QuantFormat, values: np.ndarray) -> Tensor:
    """`values` in a format; formats without a quantizer of ours get random bytes of a like scale."""
    rows = values.reshape(-1, values.shape[-1])
    data = fmt.quantize(rows) if fmt.quantize is not None else _random_k_quant(fmt, rows)
    return Tensor(fmt, values.shape, data)


def _random_k_quant(fmt: QuantFormat, rows: np.ndarray) -> np.ndarray:
    """Random codes and scales; the f16 super scales make weights about as large as `rows`."""
    generator = np.random.default_rng(rows.shape[0])
    data = generator.integers(0, 256, (*rows.shape[:1], fmt.row_bytes(rows.shape[1])), np.uint8)
    groups = data.reshape(rows.shape[0], -1, fmt.group_bytes)
    spread = float(rows.std())
    if fmt.name == "Q6_K":
        groups[..., -2:] = np.array([spread / 1200], np.float16).view(np.uint8)
    else:
        top = 15 if fmt.name == "Q4_K" else 31
        scales = np.array([spread / (10 * top), spread / 20], np.float16)
        groups[..., :4] = scales.view(np.uint8)
    return data
