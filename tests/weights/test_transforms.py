"""Transforms against what rotary embeddings compute, and against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from tuili import quant
from tuili.errors import UnsupportedModelError
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec
from tuili.quant.format import Floats, Tensor
from tuili.weights.transforms import add_one, unpermute_rope

HEADS, HEAD_DIM, HIDDEN = 3, 12, 32


def spec(rotated: int | None) -> ModelSpec:
    rope = None if rotated is None else RopeSpec(dim=rotated)
    mixer = AttentionSpec(num_heads=HEADS, num_kv_heads=1, head_dim=HEAD_DIM, scale=1.0, rope=rope)
    layer = LayerSpec(mixer=mixer, mlp=MlpSpec(intermediate_size=8))
    return ModelSpec(family="test", vocab_size=9, hidden_size=HIDDEN, max_position=9, layers=(layer,))


def packed(values: Floats, name: str = "F32") -> Tensor:
    weight_format = quant.BY_NAME[name]
    return Tensor(weight_format, values.shape, weight_format.quantize(values.reshape(-1, values.shape[-1])))


def rotate_pairs(heads: Floats, dim: int) -> Floats:
    """GGUF's llama: dimensions 2 j and 2 j + 1 turn by angle j."""
    first, second, angles = heads[:, 0:dim:2], heads[:, 1:dim:2], np.arange(1, dim // 2 + 1)
    turned = heads.copy()
    turned[:, 0:dim:2] = first * np.cos(angles) - second * np.sin(angles)
    turned[:, 1:dim:2] = first * np.sin(angles) + second * np.cos(angles)
    return turned


def rotate_halves(heads: Floats, dim: int) -> Floats:
    """Hugging Face: dimensions j and j + dim / 2 turn by angle j."""
    first, second, angles = heads[:, : dim // 2], heads[:, dim // 2 : dim], np.arange(1, dim // 2 + 1)
    turned = [first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)]
    return np.concatenate([*turned, heads[:, dim:]], axis=1)


@pytest.mark.parametrize("dim", [2, 4, 8, 12])
def test_attention_scores_are_those_of_the_other_rotation(dim: int) -> None:
    """Rotary embeddings of all or of some dimensions: q and k reordered alike give the same scores."""
    rng = np.random.default_rng(dim)
    q, k = (rng.standard_normal((HEADS * HEAD_DIM, HIDDEN)).astype(np.float32) for _ in range(2))
    x, y = rng.standard_normal((2, HIDDEN)).astype(np.float32)
    expected = rotate_pairs((q @ x).reshape(HEADS, -1), dim) * (k @ y).reshape(HEADS, -1)
    new_q = unpermute_rope(packed(q), spec(dim), "layers.0.q_proj.weight").dequantize()
    new_k = unpermute_rope(packed(k), spec(dim), "layers.0.k_proj.weight").dequantize()
    found = rotate_halves((new_q @ x).reshape(HEADS, -1), dim) * (new_k @ y).reshape(HEADS, -1)
    np.testing.assert_allclose(found.sum(1), expected.sum(1), rtol=1e-4, atol=1e-4)


def test_rows_and_biases_move_alike() -> None:
    rows = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
    bias = unpermute_rope(packed(rows), spec(HEAD_DIM), "layers.0.q_proj.bias")
    assert bias.shape == rows.shape
    assert bias.dequantize()[:HEAD_DIM].tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    for name in ("F16", "Q8_0", "Q4_0"):
        weights = np.repeat(rows[:, None], HIDDEN, axis=1)
        moved = unpermute_rope(packed(weights, name), spec(HEAD_DIM), "layers.0.q_proj.weight")
        order = bias.dequantize().astype(int)
        np.testing.assert_array_equal(moved.data, packed(weights, name).data[order])


def test_without_rotation_nothing_moves() -> None:
    rows = packed(np.arange(HEADS * HEAD_DIM, dtype=np.float32))
    np.testing.assert_array_equal(unpermute_rope(rows, spec(None), "layers.0.k_proj.bias").data, rows.data)


def test_a_quantized_bias_is_refused() -> None:
    bias = Tensor(quant.BY_NAME["Q8_0"], (32,), np.zeros((1, 34), np.uint8))
    words = "^layers.0.q_proj.bias is a bias in Q8_0, only unquantized biases are allowed$"
    with pytest.raises(UnsupportedModelError, match=words):
        unpermute_rope(bias, spec(4), "layers.0.q_proj.bias")


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_add_one(name: str) -> None:
    gains = np.array([-1.0, 0.0, 0.25, 3.0], np.float32)
    found = add_one(packed(gains, name), spec(4), "norm.weight")
    assert (found.format.name, found.shape) == ("F32", (4,))
    assert found.dequantize().tolist() == [0.0, 1.0, 1.25, 4.0]
