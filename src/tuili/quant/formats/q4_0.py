"""Q4_0: 32 weights as a float16 scale and 4-bit levels around 8. Weight = scale * (level - 8)."""

from __future__ import annotations

import numpy as np

from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    levels = g.unpack_nibbles(groups[:, 2:]).view(np.int8) - np.int8(8)
    return g.load_half(groups, 0) * levels.astype(np.float32)


def encode(groups: Floats) -> Bytes:
    scale = g.signed_peak(groups) / np.float32(-8)
    levels = g.round_down_to(groups * g.reciprocal(scale) + np.float32(8.5), 15)
    return np.concatenate([g.store_half(scale), g.pack_nibbles(levels)], axis=1)


FORMAT = g.grouped_format(name="Q4_0", gguf_id=2, group_size=32, group_bytes=18, decode=decode, encode=encode)
