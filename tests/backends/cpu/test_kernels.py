"""Packing, activation quantization and matmul: every format on every instruction set this machine has.

Against the gguf package's dequantizers and exact integer or float64 sums, never against another kernel alone.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from support.bfloat16 import rounded_to_bf16
from tuili import quant
from tuili.backends.cpu import _native

K: Any = _native.kernels  # type: ignore[attr-defined]
ISAS: tuple[str, ...] = K.available_isas()
HALVES = {  # where a quantized block keeps its float16 fields
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
FLOATS = ("F32", "F16", "BF16")
QUANTIZED = tuple(HALVES)
FORMATS = FLOATS + QUANTIZED
BITS_PER_WEIGHT = dict(  # packed
    zip(FORMATS, (32, 16, 16, 4.5, 5, 5.5, 6, 8.5, 2.625, 3.5625, 4.625, 5.625, 6.5625, 4.5, 4.3125), strict=True)
)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def cols_of(name: str, groups: int) -> int:
    """Cols of at least `groups` 32-groups that the format allows."""
    return 32 * groups if name in FLOATS else -(-32 * groups // (group := quant.BY_NAME[name].group_size)) * group


def source_bytes(name: str, rows: int, cols: int, rng: np.random.Generator, half: float | None = None) -> Bytes:
    """Random weights as GGUF stores them; every float16 field is `half`, or random of either sign."""
    if name in FLOATS:
        values = rng.standard_normal((rows, cols)).astype(np.float32)
        return np.ascontiguousarray(quants.quantize(values, gguf.GGMLQuantizationType[name])).view(np.uint8)
    weights, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows, cols // weights, block_bytes), dtype=np.uint8)
    return with_halves(name, blocks, rng.standard_normal(blocks.shape[:2]) if half is None else half).reshape(rows, -1)


def with_halves(name: str, blocks: Bytes, value: Any) -> Bytes:
    halves = np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float16), blocks.shape[:2]))
    for at in HALVES[name]:
        blocks[:, :, at : at + 2] = halves[:, :, None].view(np.uint8)
    return blocks


def dequantized(name: str, source: Bytes) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(quants.dequantize(source, gguf.GGMLQuantizationType[name]), np.float32)


def matmul(isa: str, matrix: Any, x: Floats) -> Floats:
    out: Floats = K.matmul(isa, matrix, K.Inputs(isa, x), 0, len(x))
    return out


def assert_same_bits(found: Floats, expected: Floats) -> None:
    """Equal bit patterns, signs of zeros included; any NaN equals any other."""
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), is_nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


def test_the_scalar_twin_is_always_there() -> None:
    assert ISAS[0] == "scalar"
    assert set(ISAS) <= {"scalar", "avx2", "avx_vnni", "avx512", "avx512_bf16"}


# --- packing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 31, 33, 100])
def test_unpacked_rows_equal_the_definition(name: str, rows: int) -> None:
    cols = cols_of(name, 3)
    source = source_bytes(name, rows, cols, np.random.default_rng(rows))
    matrix = K.Matrix(name, source, cols)
    assert_same_bits(np.stack([matrix.unpack(row) for row in range(rows)]), dequantized(name, source))
    assert matrix.num_bytes == -(-rows // 32) * 32 * cols * BITS_PER_WEIGHT[name] / 8


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_unpack_to_what_they_mean(name: str) -> None:
    """Infinities, NaN, denormals and negative zeros included, from a source that is not aligned."""
    rows, cols = 40, cols_of(name, 8)
    weights, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    size = rows * cols // weights * block_bytes
    source = np.random.default_rng(7).integers(0, 256, size + 1, dtype=np.uint8)[1:].reshape(rows, -1)
    matrix = K.Matrix(name, source, cols)
    assert_same_bits(np.stack([matrix.unpack(row) for row in range(rows)]), dequantized(name, source.copy()))


def test_what_cannot_be_packed_is_refused() -> None:
    row = np.zeros((1, 18), np.uint8)
    with pytest.raises(ValueError, match="format IQ2_XS has no kernel"):
        K.Matrix("IQ2_XS", row, 32)
    with pytest.raises(ValueError, match="a row of 33 Q4_0 weights is 0 bytes, not 18"):
        K.Matrix("Q4_0", row, 33)
    with pytest.raises(ValueError, match="a row of 64 Q4_0 weights is 36 bytes, not 18"):
        K.Matrix("Q4_0", row, 64)
    with pytest.raises(IndexError, match="outside"):
        K.Matrix("Q4_0", row, 32).unpack(1)


# --- activation quantization --------------------------------------------------------------------------------------


def expected_groups(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """q [groups, rows, 32] and scale [groups, rows] of finite rows, by the formula that quantize.inl states."""
    grouped = x.reshape(len(x), -1, 32).transpose(1, 0, 2)
    largest = np.abs(grouped).max(axis=2)
    largest[largest < np.float32(1e-30)] = 0
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    return np.rint(grouped * inverse[:, :, None]).astype(np.int8), largest / np.float32(127)


@pytest.mark.parametrize("isa", ISAS)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.sampled_from([32, 96])),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    )
)
@settings(max_examples=60, deadline=None)
def test_activations_quantize_by_the_formula(isa: str, x: Floats) -> None:
    q, scale, scaled_sum, total, half = K.Inputs(isa, x).groups()
    expected_q, expected_scale = expected_groups(x)
    np.testing.assert_array_equal(q, expected_q)
    assert_same_bits(scale, expected_scale)
    np.testing.assert_array_equal(total, expected_q.sum(axis=2, dtype=np.int32))
    np.testing.assert_array_equal(half, expected_q[:, :, :16].sum(axis=2, dtype=np.int32))
    np.testing.assert_array_equal(scaled_sum, scale * total.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_row_is_nan_and_no_other(isa: str, poison: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 96)).astype(np.float32)
    matrix = K.Matrix("Q4_0", source_bytes("Q4_0", 33, 96, rng), 96)
    clean = matmul(isa, matrix, x)
    x[3, 40] = poison
    poisoned = matmul(isa, matrix, x)
    assert np.isnan(poisoned[3]).all()
    assert_same_bits(np.delete(poisoned, 3, axis=0), np.delete(clean, 3, axis=0))


# --- matmul -----------------------------------------------------------------------------------------------------


def quantized_rows(isa: str, name: str, x: Floats) -> NDArray[np.float64]:
    """The activations that the kernel really multiplies."""
    if name == "BF16" and isa.endswith("_bf16"):
        return rounded_to_bf16(x).astype(np.float64)
    if name in FLOATS:
        return x.astype(np.float64)
    q, scale, *_ = K.Inputs(isa, x).groups()
    return np.asarray((q * scale[:, :, None].astype(np.float64)).transpose(1, 0, 2).reshape(x.shape))


def assert_near_exact(isa: str, name: str, source: Bytes, x: Floats) -> None:
    """Within cols * 2^-24 of the exact product, relative to the product of magnitudes."""
    weights, inputs = dequantized(name, source).astype(np.float64), quantized_rows(isa, name, x)
    found = matmul(isa, K.Matrix(name, source, x.shape[1]), x)
    magnitude = np.abs(inputs).sum(axis=1)[:, None] * np.abs(weights).max(axis=1)[None, :]
    assert found.shape == (len(x), len(source))
    np.testing.assert_array_less(np.abs(found - inputs @ weights.T), 2.0**-24 * x.shape[1] * magnitude + 1e-30)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (31, 3), (33, 8), (100, 16)])
def test_products_are_near_exact(isa: str, name: str, rows: int, groups: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((5, cols_of(name, groups))).astype(np.float32)
    assert_near_exact(isa, name, source_bytes(name, rows, x.shape[1], rng), x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("cols", [1, 7, 40])
def test_float_formats_take_any_number_of_columns(isa: str, name: str, cols: int) -> None:
    rng = np.random.default_rng(cols)
    x = rng.standard_normal((3, cols)).astype(np.float32)
    assert_near_exact(isa, name, source_bytes(name, 33, cols, rng), x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("fill", [None, 0x00, 0x7F, 0x80, 0xFF])
def test_integers_multiply_exactly(isa: str, name: str, fill: int | None) -> None:
    """With scales of one and activations of +-127 every float operation is exact while running sums stay below 2^24:
    no code is lost, no 16-bit sum saturates."""
    rng, cols = np.random.default_rng(1), cols_of(name, 4)
    blocks = source_bytes(name, 64, cols, rng)
    if fill is not None:
        blocks = np.full_like(blocks, fill)
    weights, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    source = with_halves(name, blocks.reshape(64, cols // weights, block_bytes), 1.0).reshape(64, -1)
    x = rng.choice(np.array([-127, 127], np.float32), (27, cols))
    x[:3] = np.array([[-127], [127], [127]], np.float32)
    x[2].reshape(-1, 32)[::2] *= -1  # whole groups of one sign, yet sums that stay small
    products = x[:, None, :].astype(np.int64) * dequantized(name, source).astype(np.int64)
    running = products.reshape(27, 64, -1, 16).sum(axis=3).cumsum(axis=2)
    is_exact, exact = np.abs(running).max(axis=2) < 2**23, running[:, :, -1]
    found = matmul(isa, K.Matrix(name, source, cols), x)
    assert is_exact.mean() > 0.25
    np.testing.assert_array_equal(found[is_exact], exact[is_exact])
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@pytest.mark.parametrize("name", QUANTIZED)
def test_largest_and_smallest_scales(name: str) -> None:
    rng, cols = np.random.default_rng(2), cols_of(name, 2)
    x = rng.standard_normal((2, cols)).astype(np.float32)
    for half in (65504.0, -65504.0, 6e-8):
        source = source_bytes(name, 32, cols, rng, half)
        for isa in ISAS:
            assert_near_exact(isa, name, source, x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_its_company(isa: str, name: str) -> None:
    """Any run of rows gives the bits that the whole batch gives; no rows give no output."""
    rng, cols = np.random.default_rng(3), cols_of(name, 3)
    x = rng.standard_normal((19, cols)).astype(np.float32)
    matrix, inputs = K.Matrix(name, source_bytes(name, 40, cols, rng), cols), K.Inputs(isa, x)
    alone = np.concatenate([K.matmul(isa, matrix, K.Inputs(isa, x[r : r + 1]), 0, 1) for r in range(19)])
    for num_rows in range(20):
        for begin in {0, (19 - num_rows) // 2, 19 - num_rows}:
            found = K.matmul(isa, matrix, inputs, begin, begin + num_rows)
            assert found.shape == (num_rows, 40)
            assert_same_bits(found, alone[begin : begin + num_rows])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_give_the_bits_of_few(isa: str, name: str) -> None:
    """Where many rows share a panel's unpacking: whole stretches of it and a rest, whole tiles of rows and a rest."""
    rng, cols = np.random.default_rng(5), cols_of(name, 11)
    x = rng.standard_normal((47, cols)).astype(np.float32)
    matrix, inputs = K.Matrix(name, source_bytes(name, 40, cols, rng), cols), K.Inputs(isa, x)
    few = np.concatenate([K.matmul(isa, matrix, inputs, row, min(row + 5, 47)) for row in range(0, 47, 5)])
    assert_same_bits(K.matmul(isa, matrix, inputs, 0, 47), few)
    assert_same_bits(K.matmul(isa, matrix, inputs, 7, 43), few[7:43])


@pytest.mark.parametrize("name", FORMATS)
def test_instruction_sets_agree_bit_for_bit(name: str) -> None:
    rng, cols = np.random.default_rng(4), cols_of(name, 16)
    x = (rng.standard_normal((7, cols)) * rng.lognormal(sigma=3, size=(1, cols))).astype(np.float32)
    matrix = K.Matrix(name, source_bytes(name, 65, cols, rng), cols)
    expected = matmul("scalar", matrix, x)
    for isa in ISAS[1:]:
        if not (name == "BF16" and isa.endswith("_bf16")):  # test_bf16_pairs.py has those
            assert_same_bits(matmul(isa, matrix, x), expected)


def test_operands_that_do_not_fit_are_refused() -> None:
    matrix = K.Matrix("Q4_0", np.zeros((1, 18), np.uint8), 32)
    inputs = K.Inputs("scalar", np.zeros((2, 32), np.float32))
    with pytest.raises(ValueError, match="differ in cols"):
        K.matmul("scalar", matrix, K.Inputs("scalar", np.zeros((2, 64), np.float32)), 0, 1)
    with pytest.raises(ValueError, match="rows are out of range"):
        K.matmul("scalar", matrix, inputs, 1, 3)
    with pytest.raises(ValueError, match="instruction set mmx is not available here"):
        K.matmul("mmx", matrix, inputs, 0, 1)
    with pytest.raises(ValueError, match="rows of 7 values are not whole groups of 32"):
        K.Inputs("scalar", np.zeros((1, 7), np.float32)).groups()
