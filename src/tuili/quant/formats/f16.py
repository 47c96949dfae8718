"""F16: IEEE half precision, little-endian."""

from __future__ import annotations

import numpy as np

from tuili.quant.format import Bytes, Floats, QuantFormat


def dequantize(data: Bytes) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def quantize(weights: Floats) -> Bytes:
    """Rounds to nearest even; magnitudes beyond 65504 become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(weights).astype("<f2").view(np.uint8)


FORMAT = QuantFormat(
    name="F16",
    gguf_id=1,
    group_size=1,
    group_bytes=2,
    dequantize=dequantize,
    quantize=quantize,
    safetensors_dtype="F16",
)
