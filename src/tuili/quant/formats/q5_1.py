"""Q5_1: 32 weights as float16 scale and minimum, fifth bits and nibbles. Weight = scale * level + minimum."""

from __future__ import annotations

import numpy as np

from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    levels = g.unpack_nibbles(groups[:, 8:]) | g.unpack_bits(groups[:, 4:8]) << 4
    return g.load_half(groups, 0) * levels.astype(np.float32) + g.load_half(groups, 2)


def encode(groups: Floats) -> Bytes:
    low = groups.min(axis=1, keepdims=True)
    scale = (groups.max(axis=1, keepdims=True) - low) / np.float32(31)
    levels = g.round_down_to((groups - low) * g.reciprocal(scale) + np.float32(0.5), 31)
    scales = [g.store_half(scale), g.store_half(low)]
    return np.concatenate(
        [*scales, g.pack_bits(levels >> np.uint8(4)), g.pack_nibbles(levels & np.uint8(0x0F))], axis=1
    )


FORMAT = g.grouped_format(name="Q5_1", gguf_id=7, group_size=32, group_bytes=24, decode=decode, encode=encode)
