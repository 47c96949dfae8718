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
    """`values` in a format."""
    return Tensor(fmt, values.shape, fmt.quantize(values.reshape(-1, values.shape[-1])))
