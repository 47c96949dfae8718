"""Q5_0: 32 weights as a float16 scale, a plane of fifth bits and nibbles. Weight = scale * (level - 16)."""

from __future__ import annotations

import numpy as np

from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    levels = g.unpack_nibbles(groups[:, 6:]) | g.unpack_bits(groups[:, 2:6]) << 4
    return g.load_half(groups, 0) * (levels.view(np.int8) - np.int8(16)).astype(np.float32)


def encode(groups: Floats) -> Bytes:
    scale = g.signed_peak(groups) / np.float32(-16)
    levels = g.round_down_to(groups * g.reciprocal(scale) + np.float32(16.5), 31)
    return np.concatenate(
        [g.store_half(scale), g.pack_bits(levels >> np.uint8(4)), g.pack_nibbles(levels & np.uint8(0x0F))], axis=1
    )


FORMAT = g.grouped_format(name="Q5_0", gguf_id=6, group_size=32, group_bytes=22, decode=decode, encode=encode)
