"""Norms, activations, rotation, reductions and attention of every instruction set against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support.bfloat16 import rounded_to_bf16
from tuili.backends.cpu import _native

K = _native.kernels  # type: ignore[attr-defined]
ISAS = K.available_isas()
SIZES = (1, 7, 16, 31, 64, 100, 577)

pytestmark = pytest.mark.parametrize("isa", ISAS)


def values(n: int, *, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed + n).standard_normal(n) * scale).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
def test_norms(isa: str, n: int) -> None:
    x, gain, bias = values(n, scale=3), values(n, seed=1), values(n, seed=2)
    wide, out = x.astype(np.float64), np.full(n, np.nan, np.float32)
    K.rms_norm(isa, x, gain, 1e-5, out)
    np.testing.assert_allclose(out, wide / np.sqrt((wide**2).mean() + 1e-5) * gain, rtol=2e-6)
    K.layer_norm(isa, x, gain, bias, 1e-5, out)
    centered = wide - wide.mean()
    expected = centered / np.sqrt((centered**2).mean() + 1e-5) * gain + bias
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=2e-5)


ACTIVATIONS = (
    lambda x: x / (1 + np.exp(-x)),
    lambda x: x * 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in x]),
    lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    lambda x: np.maximum(x, 0),
    lambda x: np.maximum(x, 0) ** 2,
)


@pytest.mark.parametrize("kind", range(5), ids=["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_activations(isa: str, kind: int) -> None:
    for n in SIZES:
        x, up = np.concatenate((values(n, scale=4), np.float32([-80, -20, 0, 1e-6, 20, 80]))), values(n + 6, seed=9)
        with np.errstate(over="ignore"):
            expected = ACTIVATIONS[kind](x.astype(np.float64))
        out = x.copy()
        K.activation(isa, kind, out)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1.5e-6)
        out = x.copy()
        K.gated_activation(isa, kind, out, up)
        np.testing.assert_allclose(out, expected * up, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("cols", [1, 16, 31, 32, 45, 96])
def test_adding_a_product_to_the_residual_stream(isa: str, cols: int) -> None:
    """Norm factor, bias and scale; then the next norm's gain, and its factor from sums per group."""
    rows, padded = 19, -(-cols // 32) * 32
    generator = np.random.default_rng(cols)
    y, x = generator.standard_normal((2, rows, cols)).astype(np.float32)
    factors = generator.random(rows).astype(np.float32)
    bias, gain = generator.standard_normal((2, padded)).astype(np.float32)
    bias[cols:] = 0
    expected = x + (y.astype(np.float64) * factors[:, None] + bias[:cols]) * 0.5
    following, next_factors = np.empty_like(x), np.empty_like(factors)
    K.add_output(isa, y, factors, bias, 0.5, x, gain, 1e-5, following, next_factors)
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(following, x * gain[:cols], rtol=1e-6)
    np.testing.assert_allclose(next_factors, 1 / np.sqrt((x.astype(np.float64) ** 2).mean(-1) + 1e-5), rtol=2e-6)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32])
def test_best_of_a_row(isa: str, n: int) -> None:
    x = values(n, scale=5)
    x[n // 3] = x[n // 2] = x.max() + 1  # equals: the lower column counts
    assert K.best_of_row(isa, x) == (x.max(), n // 3)
    x[:] = -np.inf
    assert K.best_of_row(isa, x) == (-np.inf, 0)


@pytest.mark.parametrize("n", SIZES)
def test_softcap(isa: str, n: int) -> None:
    x = values(n, scale=60)
    out = x.copy()
    K.softcap(isa, out, 30.0)
    np.testing.assert_allclose(out, 30 * np.tanh(x.astype(np.float64) / 30), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dim", "head_dim"), [(2, 2), (20, 80), (64, 64), (62, 70), (256, 256)])
def test_rope(isa: str, dim: int, head_dim: int) -> None:
    head, angle = values(head_dim), np.linspace(0, 50, dim // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    out = head.copy()
    K.rope(isa, out, cos, sin)
    z = (head[: dim // 2] + 1j * head[dim // 2 : dim]) * np.exp(1j * angle)
    np.testing.assert_allclose(out, np.concatenate((z.real, z.imag, head[dim:])), atol=1e-6)


@pytest.mark.parametrize("n", [*SIZES, 4099])
def test_reductions(isa: str, n: int) -> None:
    x = values(n, scale=5)
    x[n // 3] = x[n // 2] = x.max() + 1  # equals: the lower index counts
    largest, at, total, greater = K.reductions(isa, x, float(x[0]))
    assert (largest, at, greater) == (x.max(), x.argmax(), (x > x[0]).sum())
    assert total == pytest.approx(np.exp(x.astype(np.float64) - largest).sum(), rel=1e-6)
    out = np.empty(n, np.float32)
    K.exp_weights(isa, x, 0.7, out)
    np.testing.assert_allclose(out, np.exp((x.astype(np.float64) - largest) / 0.7), rtol=5e-6, atol=1e-37)
    blocks = np.empty(-(-n // 32), np.float32)
    assert K.block_sums(isa, x, 0.7, blocks) == pytest.approx(out.astype(np.float64).sum(), rel=1e-14)
    assert blocks.tolist() == [x[i : i + 32].max() for i in range(0, n, 32)]


def test_reductions_of_rows_without_a_number(isa: str) -> None:
    for value in (-np.inf, np.nan):
        x = np.full(50, value, np.float32)
        assert K.reductions(isa, x, 0.0)[1] == 0
    x = np.full(50, np.nan, np.float32)
    x[20] = 1.0
    assert 0 <= K.reductions(isa, x, 0.0)[1] < 50


def int8(x: np.ndarray) -> np.ndarray:
    """Rounded per head to int8 with a float32 scale, and back."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    return np.rint(x * (1 / scale)) * scale


ROUNDING = {"bfloat16": rounded_to_bf16, "int8": int8}
TOLERANCE = {"bfloat16": 3e-6, "int8": 5e-4}  # int8 has queries and weights in 16 bits


def attend(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, window: int, scale: float, cap: float
) -> np.ndarray:
    """Softmax attention in float64."""
    num_queries, num_tokens = len(queries), len(keys)
    scores = np.einsum("qhd,kd->hqk", queries.astype(np.float64), keys[:, 0]) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    distance = np.arange(num_tokens - num_queries, num_tokens)[:, None] - np.arange(num_tokens)
    scores[:, (distance < 0) | (distance >= (window or num_tokens + 1))] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out: np.ndarray = np.einsum("hqk,kd->qhd", weights, values[:, 0].astype(np.float64))
    return out


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("num_queries", "num_tokens", "num_heads", "head_dim", "block_size", "window", "cap"),
    [
        (1, 1, 1, 16, 16, 0, 0.0),
        (1, 40, 3, 64, 16, 0, 0.0),
        (8, 300, 3, 64, 64, 0, 0.0),
        (5, 777, 7, 80, 32, 0, 0.0),
        (24, 24, 1, 128, 256, 0, 20.0),
        (1, 600, 16, 256, 128, 512, 0.0),
        (20, 530, 1, 40, 16, 7, 5.0),
        (12, 520, 2, 10, 16, 256, 0.0),
        (3, 515, 2, 33, 64, 1, 0.0),
        (2, 290, 5, 64, 32, 33, 0.0),
    ],
)
def test_attention(
    isa: str,
    dtype: str,
    num_queries: int,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
    cap: float,
) -> None:
    """Slots not written hold NaN and blocks behind the window have table entry -1: neither may be read."""
    generator = np.random.default_rng(num_tokens)
    queries = generator.standard_normal((num_queries, num_heads, head_dim), np.float32) * 2
    keys, values = generator.standard_normal((2, num_tokens, 1, head_dim), np.float32)
    scale, rounded = head_dim**-0.5, ROUNDING[dtype]
    out = np.full_like(queries, np.nan)
    K.attention(isa, dtype, queries, keys, values, block_size, window, scale, cap, out)
    tolerance = TOLERANCE[dtype]
    factors, factor_scale = queries, scale
    if dtype == "bfloat16" and isa.endswith("_bf16"):  # queries and softmax weights are rounded, too
        factors, factor_scale = rounded(queries * np.float32(scale)), 1.0
        tolerance = float(2.0**-8 * np.abs(values).max())
    expected = attend(factors, rounded(keys), rounded(values), window, factor_scale, cap)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)
    alone = np.full((1, num_heads, head_dim), np.nan, np.float32)
    for q in (0, num_queries // 2, num_queries - 1):
        end = num_tokens - num_queries + q + 1
        K.attention(isa, dtype, queries[q : q + 1], keys[:end], values[:end], block_size, window, scale, cap, alone)
        assert np.array_equal(alone[0], out[q]), "a row's bits depend on its neighbours"


@pytest.mark.parametrize("dtype", ROUNDING)
def test_attention_with_large_scores(isa: str, dtype: str) -> None:
    keys = np.full((20, 1, 16), 100, np.float32)
    keys[7] = -100
    queries, values = np.full((1, 1, 16), 100, np.float32), np.arange(320, dtype=np.float32).reshape(20, 1, 16)
    out = np.empty((1, 1, 16), np.float32)
    K.attention(isa, dtype, queries, keys, values, 16, 0, 1.0, 0.0, out)
    rounded = ROUNDING[dtype]
    np.testing.assert_allclose(out, attend(queries, rounded(keys), rounded(values), 0, 1.0, 0.0), rtol=2e-4)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_attention_over_zeros(isa: str, dtype: str) -> None:
    """Heads without a largest value to scale by."""
    nothing = np.zeros((20, 1, 16), np.float32)
    out = np.full((1, 2, 16), np.nan, np.float32)
    K.attention(isa, dtype, np.zeros((1, 2, 16), np.float32), nothing, nothing, 16, 0, 1.0, 0.0, out)
    assert (out == 0).all()
