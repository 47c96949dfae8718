"""Dequantizers and quantizers against the gguf package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tuili import quant
from tuili.quant.format import Bytes, Floats, QuantFormat, Tensor

FLOATS = ("F32", "F16", "BF16")
GROUPED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
NAMES = FLOATS + GROUPED
AS_GGUF = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
FITTED = tuple(name for name in GROUPED if name not in AS_GGUF)


def gguf_type(f: QuantFormat) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(f.gguf_id)


def oracle_dequantize(f: QuantFormat, data: Bytes) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(quants.dequantize(data, gguf_type(f)), np.float32)


def assert_same_bits(found: Floats, expected: Floats) -> None:
    """Equal bit patterns, signs of zeros included; any NaN equals any other."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), is_nan)
    np.testing.assert_array_equal(
        np.where(is_nan, 0, np.ascontiguousarray(found).view(np.uint32)),
        np.where(is_nan, 0, np.ascontiguousarray(expected).view(np.uint32)),
    )


def random_weights(seed: int = 0, rows: int = 7, cols: int = 96) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, cols)) * rng.lognormal(sigma=2, size=(rows, 1))).astype(np.float32)


def test_every_format_is_found_and_named_as_gguf_names_it() -> None:
    assert set(quant.BY_NAME) == set(NAMES)
    for name, f in quant.BY_NAME.items():
        assert gguf_type(f).name == name
        assert gguf.GGML_QUANT_SIZES[gguf_type(f)] == (f.group_size, f.group_bytes)
        assert quant.BY_GGUF_ID[f.gguf_id] is f


def test_safetensors_dtypes() -> None:
    assert {dtype: f.name for dtype, f in quant.BY_SAFETENSORS_DTYPE.items()} == {
        "F32": "F32",
        "F16": "F16",
        "BF16": "BF16",
    }


@pytest.mark.parametrize("name", NAMES)
def test_row_bytes(name: str) -> None:
    f = quant.BY_NAME[name]
    assert f.row_bytes(512) == 512 // f.group_size * f.group_bytes


@pytest.mark.parametrize("name", GROUPED)
def test_rows_are_whole_groups(name: str) -> None:
    with pytest.raises(AssertionError):
        quant.BY_NAME[name].row_bytes(512 + 16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (3, 5), (33, 8)])
def test_dequantize_random_bytes(name: str, rows: int, groups: int) -> None:
    f = quant.BY_NAME[name]
    data = np.random.default_rng(rows).integers(0, 256, (rows, groups * f.group_bytes), np.uint8)
    found = f.dequantize(data)
    assert found.shape == (rows, groups * f.group_size)
    assert_same_bits(found, oracle_dequantize(f, data))


@pytest.mark.parametrize("name", GROUPED)
def test_dequantize_more_groups_than_one_run(name: str) -> None:
    f = quant.BY_NAME[name]
    data = np.random.default_rng(1).integers(0, 256, (3, 3001 * f.group_bytes), np.uint8)
    assert_same_bits(f.dequantize(data), oracle_dequantize(f, data))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", [0x00, 0x01, 0x7C, 0x7F, 0x80, 0xFC, 0xFF])
def test_dequantize_extreme_bytes(name: str, fill: int) -> None:
    f = quant.BY_NAME[name]
    data = np.full((2, 4 * f.group_bytes), fill, np.uint8)
    assert_same_bits(f.dequantize(data), oracle_dequantize(f, data))


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("half", [0x0000, 0x8000, 0x0001, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01])
def test_dequantize_extreme_scales(name: str, half: int) -> None:
    """Zero, negative zero, the smallest, the largest, infinite, NaN and signalling NaN scales."""
    f = quant.BY_NAME[name]
    data = np.random.default_rng(half).integers(0, 256, (2, 4 * f.group_bytes), np.uint8)
    offset = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(name, 0)
    scale = np.frombuffer(np.uint16(half).tobytes(), np.uint8)
    data.reshape(-1, f.group_bytes)[:, offset : offset + 2] = scale
    assert_same_bits(f.dequantize(data), oracle_dequantize(f, data))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_dequantize_any_bytes(name: str, data: st.DataObject) -> None:
    f = quant.BY_NAME[name]
    groups = data.draw(st.integers(1, 3))
    raw = data.draw(hnp.arrays(np.uint8, (2, groups * f.group_bytes)))
    assert_same_bits(f.dequantize(raw), oracle_dequantize(f, raw))


@pytest.mark.parametrize("name", NAMES)
def test_dequantize_unaligned_read_only_view(name: str) -> None:
    """What a memory-mapped file gives: bytes at any address that nobody may write."""
    f = quant.BY_NAME[name]
    raw = np.random.default_rng(2).integers(0, 256, 1 + 6 * f.group_bytes, np.uint8)
    raw.flags.writeable = False
    data = raw[1:].reshape(2, -1)
    assert_same_bits(f.dequantize(data), oracle_dequantize(f, data.copy()))


@pytest.mark.parametrize("name", AS_GGUF)
@pytest.mark.parametrize("seed", range(3))
def test_quantize_as_gguf_does(name: str, seed: int) -> None:
    f = quant.BY_NAME[name]
    weights = random_weights(seed)
    found = f.quantize(weights)
    assert found.dtype == np.uint8
    assert found.shape == (7, f.row_bytes(96))
    expected = np.ascontiguousarray(quants.quantize(weights, gguf_type(f))).view(np.uint8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "bound"),
    # Of the largest magnitude: half a step of 1/8, 1/16 and 1/127, except that levels of Q4_0 and Q5_0 stop one
    # step short of the peak's mirror image; of the range: half a step of 1/15 and 1/31. Scales round to float16.
    [("Q4_0", 1 / 8), ("Q4_1", 1 / 15), ("Q5_0", 1 / 16), ("Q5_1", 1 / 31), ("Q8_0", 0.5 / 127)],
)
def test_quantization_error(name: str, bound: float) -> None:
    f = quant.BY_NAME[name]
    weights = random_weights(5, rows=40)
    error = np.abs(f.dequantize(f.quantize(weights)) - weights).reshape(-1, 32).max(axis=1)
    assert (error <= np.abs(weights).reshape(-1, 32).max(axis=1) * (bound + 1e-3)).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_quantizing_again_changes_nothing(name: str) -> None:
    f = quant.BY_NAME[name]
    once = f.dequantize(f.quantize(random_weights(6)))
    np.testing.assert_array_equal(f.dequantize(f.quantize(once)), once)


@pytest.mark.parametrize(
    ("name", "bound"),
    # What llama-quantize of 2026-10 leaves of the same normal weights, without an importance matrix.
    [
        *(("Q2_K", 0.29587), ("Q3_K", 0.15085), ("Q4_K", 0.07136), ("Q5_K", 0.03607), ("Q6_K", 0.01773)),
        *(("IQ4_NL", 0.07621), ("IQ4_XS", 0.07679)),
    ],
)
def test_fitted_formats_lose_no_more_than_llama_cpp(name: str, bound: float) -> None:
    f = quant.BY_NAME[name]
    weights = np.random.default_rng(11).standard_normal((64, 2048)).astype(np.float32)
    error = f.dequantize(f.quantize(weights)) - weights
    assert float(np.sqrt((error**2).mean())) <= bound * 1.015


@pytest.mark.parametrize("name", FITTED)
def test_weights_that_a_format_holds_come_back(name: str) -> None:
    """Rows made of the format's own levels, under scales as they should be, lose next to nothing."""
    f = quant.BY_NAME[name]
    once = f.dequantize(f.quantize(random_weights(8, rows=20, cols=512)))
    again = f.dequantize(f.quantize(once))
    assert np.sqrt(((again - once) ** 2).mean(axis=1)).max() <= 0.03 * np.sqrt((once**2).mean(axis=1)).max()


@pytest.mark.parametrize("name", FITTED)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_weight_gets_worse_than_zero(name: str, data: st.DataObject) -> None:
    """Any finite weights within float16's range: never NaN, and a group's error is below its size."""
    f = quant.BY_NAME[name]
    elements = st.floats(-30000, 30000, width=32)
    weights = data.draw(hnp.arrays(np.float32, (1, f.group_size), elements=elements))
    found = f.dequantize(f.quantize(weights))
    assert np.isfinite(found).all()
    assert np.square(found - weights, dtype=np.float64).sum() <= np.square(weights, dtype=np.float64).sum() + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-41, -1e-41, 3.0, -3.0])
def test_quantize_constant_rows(name: str, value: float) -> None:
    """No division by a scale that is zero or too small to have a reciprocal."""
    f = quant.BY_NAME[name]
    weights = np.full((2, 256), value, np.float32)
    np.testing.assert_allclose(f.dequantize(f.quantize(weights)), weights, rtol=2e-3, atol=1e-37)


def test_float16_and_bfloat16_round_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(3).integers(0, 2**32, (64, 64), np.uint32)
    weights = bits.view(np.float32)
    for name, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        f = quant.BY_NAME[name]
        expected = torch.from_numpy(weights.copy()).to(dtype).float().numpy()
        assert_same_bits(f.dequantize(f.quantize(weights)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_tensor_shapes(name: str) -> None:
    f = quant.BY_NAME[name]
    data = np.random.default_rng(4).integers(0, 256, (6, f.row_bytes(256)), np.uint8)
    tensor = Tensor(f, (2, 3, 256), data)
    assert tensor.num_bytes == data.nbytes
    assert tensor.dequantize().shape == (2, 3, 256)
    assert_same_bits(tensor.dequantize().reshape(6, 256), oracle_dequantize(f, data))


@pytest.mark.parametrize("name", NAMES)
def test_row_permutation_is_exact_on_packed_bytes(name: str) -> None:
    f = quant.BY_NAME[name]
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (8, f.row_bytes(256)), np.uint8)
    order = rng.permutation(8)
    assert_same_bits(f.dequantize(data[order]), f.dequantize(data)[order])
