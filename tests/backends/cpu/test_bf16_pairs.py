"""Kernels that multiply bfloat16 by bfloat16, two at a time: the portable twin against the definition bit for bit, and
the instruction's kernels, where this processor has it, against the twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants
from numpy.typing import NDArray

from support.batches import Driver, Work
from support.bfloat16 import rounded_to_bf16
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.backends.cpu import _native
from tuili.models.spec import ModelSpec

K: Any = _native.kernels  # type: ignore[attr-defined]
TWIN = "scalar_bf16"
ISAS = tuple(isa for isa in (TWIN, "avx512_bf16") if _native.has_isa(isa))

Floats = NDArray[np.float32]


def packed(weights: Floats) -> Any:
    source = np.ascontiguousarray(quants.quantize(weights, gguf.GGMLQuantizationType.BF16)).view(np.uint8)
    return K.Matrix("BF16", source, weights.shape[1])


def product(isa: str, weights: Floats, x: Floats) -> Floats:
    out: Floats = K.matmul(isa, packed(weights), K.Inputs(isa, x), 0, len(x))
    return out


def defined_product(weights: Floats, x: Floats) -> Floats:
    """Pair by pair, the odd element first, each addition rounded once: products of bfloat16 are exact in float64."""
    pad = ((0, 0), (0, x.shape[1] % 2))
    w, rows = np.pad(weights, pad).astype(np.float64), np.pad(rounded_to_bf16(x), pad).astype(np.float64)
    total = np.zeros((len(x), len(w)), np.float32)
    for k in range(0, w.shape[1], 2):
        for at in (k + 1, k):
            total = (total + np.outer(rows[:, at], w[:, at])).astype(np.float32)
    return total


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 7), (26, 40), (13, 64), (12, 97)])
def test_products(isa: str, rows: int, cols: int) -> None:
    """Sums that are exact have one result, in whatever order; others are the twin's as defined, near it elsewhere."""
    weights, x = rounded_to_bf16(normal(45, cols)), normal(rows, cols, seed=1)
    expected = defined_product(weights, x)
    found = product(isa, weights, x)
    bound = 0.0 if isa == TWIN else cols * 2.0**-23 * float(np.abs(weights).max() * np.abs(x).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    whole = np.random.default_rng(cols).integers(-100, 101, (rows, cols)).astype(np.float32)
    np.testing.assert_array_equal(product(isa, np.rint(weights * 50), whole), whole @ np.rint(weights * 50).T)


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_that_is_no_number_stays_alone(isa: str) -> None:
    weights, x = rounded_to_bf16(normal(33, 41)), normal(14, 41)
    clean = product(isa, weights, x)
    x[5, 40] = np.nan
    found = product(isa, weights, x)
    assert np.isnan(found[5]).all()
    assert np.array_equal(np.delete(found, 5, axis=0), np.delete(clean, 5, axis=0))


def attend(queries: Floats, keys: Floats, values: Floats, chunk: int) -> NDArray[np.float64]:
    """One query [heads, dim] over all tokens, in chunks whose weights are rounded before they are summed."""
    scores = rounded_to_bf16(queries).astype(np.float64) @ rounded_to_bf16(keys).T.astype(np.float64)
    largest, total, out = np.full((len(queries), 1), -np.inf), 0.0, 0.0
    for first in range(0, len(keys), chunk):
        part = scores[:, first : first + chunk]
        top = part.max(1, keepdims=True)
        weights = rounded_to_bf16(np.exp(part - top).astype(np.float32)).astype(np.float64)
        new = np.maximum(largest, top)
        keep, take = np.exp(largest - new), np.exp(top - new)
        out = out * keep + weights @ rounded_to_bf16(values[first : first + chunk]).astype(np.float64) * take
        total = total * keep + weights.sum(1, keepdims=True) * take
        largest = new
    return np.asarray(out / total)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("num_tokens", "num_heads", "head_dim"), [(1, 1, 16), (37, 3, 64), (600, 7, 40), (301, 2, 33)])
def test_queries_and_softmax_weights_are_rounded(isa: str, num_tokens: int, num_heads: int, head_dim: int) -> None:
    """Only weights at the edge between two bfloat16 values may come out otherwise."""
    queries, keys, values = (normal(n, head_dim, seed=n) for n in (num_heads, num_tokens, num_tokens))
    out = np.full((1, num_heads, head_dim), np.nan, np.float32)
    K.attention(isa, "bfloat16", queries[None], keys[:, None], values[:, None], 32, 0, 1.0, 0.0, out)
    error = np.abs(out[0] - attend(queries, keys, values, 256))
    assert error.max() <= 2.0**-8 * np.abs(values).max()
    assert error.mean() <= 1e-4


def wide() -> ModelSpec:
    """Heads and inputs that are no whole groups of 32, norms between sublayers, projected embeddings."""
    own = {"layer_changes": {"norms": "sandwich"}, "head_dim": 20, "rope": None}
    return decoder(layer(sliding_window=40, **own), layer(layer_changes={"parallel": True}), embedding_size=48)


@pytest.fixture(scope="module", params=[decoder, wide], ids=["plain", "wide"])
def load(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    spec = request.param()
    weights = random_weights(spec, "BF16", q_proj="F32", down_proj="Q8_0")

    def load(isa: str, num_threads: int = 1) -> Backend:
        options = BackendOptions(max_model_len=400, isa=isa, num_threads=num_threads)
        return load_backend("cpu", spec, weights, options)

    return load


TEXT = np.random.default_rng(3).integers(0, 101, 290).tolist()


@pytest.mark.parametrize("isa", ISAS)
def test_a_model_has_one_set_of_bits_near_float32s(load: Callable[..., Backend], isa: str) -> None:
    """Inputs that go to BF16, float32 and int8 matrices; the text at once, in chunks, token by token, in company."""
    expected = Driver(load(isa), block_size=64).logits(TEXT)
    exact = Driver(load("scalar"), block_size=64).logits(TEXT)
    assert 0 < np.abs(expected - exact).max() < 0.05 * np.abs(exact).max()
    driver = Driver(load(isa, num_threads=3), block_size=32)
    assert np.array_equal(driver.logits(TEXT[:280], chunk=37), expected[:280])
    texts = [driver.text() for _ in range(3)]
    driver.step([Work(text, TEXT[:first], 1) for text, first in zip(texts, (5, 100, 254), strict=True)])
    for _ in range(3):
        works = [Work(text, [TEXT[text.length]]) for text in texts]
        positions = [text.length for text in texts]
        logits = driver.step(works).logits
        assert np.array_equal(np.asarray(logits), expected[positions])
