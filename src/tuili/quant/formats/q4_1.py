"""Q4_1: 32 weights as a float16 scale, a float16 minimum and 4-bit levels. Weight = scale * level + minimum."""

from __future__ import annotations

import numpy as np

from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    levels = g.unpack_nibbles(groups[:, 4:]).astype(np.float32)
    return g.load_half(groups, 0) * levels + g.load_half(groups, 2)


def encode(groups: Floats) -> Bytes:
    low = groups.min(axis=1, keepdims=True)
    scale = (groups.max(axis=1, keepdims=True) - low) / np.float32(15)
    levels = g.round_down_to((groups - low) * g.reciprocal(scale) + np.float32(0.5), 15)
    return np.concatenate([g.store_half(scale), g.store_half(low), g.pack_nibbles(levels)], axis=1)


FORMAT = g.grouped_format(name="Q4_1", gguf_id=3, group_size=32, group_bytes=20, decode=decode, encode=encode)
