"""The native quantizers beside their twins in NumPy, byte for byte, on every instruction set this machine has."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tuili import quant
from tuili.backends.cpu import _native, quantizer
from tuili.errors import InvalidRequestError, ModelFileError
from tuili.quant.format import Tensor
from tuili.weights.quantizing import quantize_tensor

ISAS: tuple[str, ...] = _native.kernels.available_isas()  # type: ignore[attr-defined]
TARGETS = tuple(f.name for f in quant.BY_NAME.values() if f.group_size > 1)
SOURCES = ("F32", "F16", "BF16")

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def weights_of(rows: int, cols: int, seed: int = 0) -> Floats:
    """Normal and heavy-tailed rows of all sizes, some with whole groups of zeros, of one value, or of one sign."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, cols)) ** np.array([1, 3])[np.arange(rows) % 2, None]
    values *= rng.lognormal(sigma=3, size=(rows, 1))
    grouped = values.reshape(-1, 16)
    grouped[::7] = 0
    grouped[3::11] = 0.25
    grouped[5::13] = np.abs(grouped[5::13])
    grouped[6::17] *= 1e-12
    return np.ascontiguousarray(values, np.float32)


def native(
    target: str, source: str, data: Bytes, cols: int, isa: str = "", num_threads: int = 1, is_finite: bool = True
) -> Bytes:
    out = np.full((len(data), quant.BY_NAME[target].row_bytes(cols)), 0xAA, np.uint8)
    assert _native.quantize_weights(target, source, data, cols, out, num_threads, isa) == is_finite
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (3, 5), (40, 2)])
def test_every_byte_is_numpys(isa: str, target: str, rows: int, blocks: int) -> None:
    f = quant.BY_NAME[target]
    weights = weights_of(rows, blocks * f.group_size, seed=rows)
    found = native(target, "F32", weights.view(np.uint8), weights.shape[1], isa)
    np.testing.assert_array_equal(found, f.quantize(weights))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", ["Q4_0", "Q4_K", "Q6_K"])
def test_floats_of_every_width(source: str, target: str) -> None:
    f, s = quant.BY_NAME[target], quant.BY_NAME[source]
    data = s.quantize(np.clip(weights_of(5, 512), -6e4, 6e4))
    np.testing.assert_array_equal(native(target, source, data, 512), f.quantize(s.dequantize(data)))


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_change_nothing(num_threads: int) -> None:
    weights = weights_of(129, 1280).view(np.uint8)
    expected = native("Q4_K", "F32", weights, 1280)
    np.testing.assert_array_equal(native("Q4_K", "F32", weights, 1280, num_threads=num_threads), expected)


def test_scales_of_every_size_round_to_float16() -> None:
    """Subnormal, halfway and infinite ones included."""
    peaks = np.ldexp(np.linspace(1, 2, 200, dtype=np.float32), np.arange(-30, 24)[:, None]).reshape(-1, 1)
    halfway = (np.arange(0x3C00, 0x3C40, dtype=np.uint16).view(np.float16).astype(np.float32) * 127)[:, None]
    weights = np.repeat(np.concatenate([peaks, halfway * np.float32(1 + 2**-11)]), 32, axis=1).astype(np.float32)
    q8_0 = quant.BY_NAME["Q8_0"]
    with np.errstate(over="ignore"):
        expected = q8_0.quantize(weights)
    np.testing.assert_array_equal(native("Q8_0", "F32", weights.view(np.uint8), 32, is_finite=False), expected)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(source: str, poison: float) -> None:
    s = quant.BY_NAME[source]
    weights = np.ones((3, 256), np.float32)
    weights[2, 255] = poison
    tensor = Tensor(s, (3, 256), s.quantize(weights))
    for target in ("Q4_K", "Q8_0", "F16"):
        with pytest.raises(ModelFileError, match=r"^weight a\.weight is not finite, which cannot be quantized$"):
            quantizer(2)(quant.BY_NAME[target], tensor, "a.weight")


def of_value(value: float) -> Tensor:
    values = np.full((3, 256), value, np.float32)
    return Tensor(quant.BY_NAME["F32"], values.shape, values.view(np.uint8))


@pytest.mark.parametrize(
    ("target", "fits", "too_large"),
    [("F16", 65519, 65520), ("BF16", 3e38, 3.4e38), ("Q8_0", 8e6, 9e6), ("Q4_1", -65519, -65520), ("Q4_K", 5e7, 7e7)],
)
def test_numbers_must_stay_finite(target: str, fits: float, too_large: float) -> None:
    f = quant.BY_NAME[target]
    for quantize in (quantize_tensor, quantizer(1)):
        assert np.isfinite(quantize(f, of_value(fits), "a").dequantize()).all()
        with pytest.raises(InvalidRequestError, match=f"^weight a holds numbers too large for {target}, allowed: "):
            quantize(f, of_value(too_large), "a")


def test_what_does_not_fit_is_refused() -> None:
    data, out = np.zeros((2, 256 * 4), np.uint8), np.zeros((2, 144), np.uint8)

    def refused(words: str, target: str = "Q4_K", source: str = "F32", cols: int = 256, isa: str = "") -> None:
        with pytest.raises(ValueError, match=words):
            _native.quantize_weights(target, source, data, cols, out, 1, isa)

    refused("Q4_K cannot be quantized to Q4_K", source="Q4_K")
    refused("F32 cannot be quantized to F16", target="F16")
    refused("weight format IQ1_S is not implemented", target="IQ1_S")
    refused("data has rows of 1024 bytes, not 1020", cols=255)
    refused("out has rows of 144 bytes, not 210", target="Q6_K")
    refused("data has rows of 1024 bytes, not 0", cols=0)
    refused("instruction set mmx is not available here", isa="mmx")
    with pytest.raises(ValueError, match="data and out differ in rows"):
        _native.quantize_weights("Q4_K", "F32", data, 256, np.zeros((1, 144), np.uint8), 1)
