"""Q8_0: 32 weights as a float16 scale and signed bytes. Weight = scale * byte."""

from __future__ import annotations

import numpy as np

from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    return g.load_half(groups, 0) * groups[:, 2:].view(np.int8).astype(np.float32)


def encode(groups: Floats) -> Bytes:
    scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    # In float64 the sum is exact, so this is C's roundf: halves go away from zero.
    levels = (groups * g.reciprocal(scale)).astype(np.float64)
    rounded = np.trunc(levels + np.copysign(0.5, levels)).clip(-127, 127).astype(np.int8)
    return np.concatenate([g.store_half(scale), rounded.view(np.uint8)], axis=1)


FORMAT = g.grouped_format(name="Q8_0", gguf_id=8, group_size=32, group_bytes=34, decode=decode, encode=encode)
