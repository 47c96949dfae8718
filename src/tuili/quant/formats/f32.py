"""F32: IEEE single precision, little-endian."""

from __future__ import annotations

import numpy as np

from tuili.quant.format import Bytes, Floats, QuantFormat


def dequantize(data: Bytes) -> Floats:
    """A view, not a copy."""
    return np.ascontiguousarray(data).view("<f4")


def quantize(weights: Floats) -> Bytes:
    return np.ascontiguousarray(weights, "<f4").view(np.uint8)


FORMAT = QuantFormat(
    name="F32",
    gguf_id=0,
    group_size=1,
    group_bytes=4,
    dequantize=dequantize,
    quantize=quantize,
    safetensors_dtype="F32",
)
