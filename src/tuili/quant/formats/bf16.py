"""BF16: the upper half of an IEEE single, little-endian."""

from __future__ import annotations

import numpy as np

from tuili.quant.format import Bytes, Floats, QuantFormat

_QUIET_NAN_BIT = np.uint32(1 << 22)


def dequantize(data: Bytes) -> Floats:
    upper = np.ascontiguousarray(data).view("<u2").astype(np.uint32)
    return (upper << 16).view(np.float32)


def quantize(weights: Floats) -> Bytes:
    """Rounds to nearest even. A NaN stays one: it is made quiet instead of rounded."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    # The carry of rounding cannot overflow: all numbers, infinities included, lie below the NaNs.
    rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return (np.where(is_nan, bits | _QUIET_NAN_BIT, rounded) >> 16).astype("<u2").view(np.uint8)


FORMAT = QuantFormat(
    name="BF16",
    gguf_id=30,
    group_size=1,
    group_bytes=2,
    dequantize=dequantize,
    quantize=quantize,
    safetensors_dtype="BF16",
)
