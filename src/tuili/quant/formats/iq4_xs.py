"""IQ4_XS: 256 weights as eight groups of 32 with 6-bit scales under one float16 factor, and IQ4_NL's levels.

Weight = (d * (scale - 32)) * level. The scales' upper bit pairs come first, then their nibbles, two to a byte.
"""

from __future__ import annotations

import numpy as np

from tuili.quant import fitting
from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    count = groups.shape[0]
    nibbles = groups[:, 4:8, None] >> np.array([0, 4], np.uint8) & 0x0F  # [n, 4, 2]
    pairs = groups[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8) & 3  # [n, 2, 4]
    scales = (nibbles.reshape(count, 8) | pairs.reshape(count, 8) << 4).astype(np.float32) - np.float32(32)
    levels = g.UNEVEN_LEVELS[g.unpack_nibbles(groups[:, 8:].reshape(-1, 16))].reshape(count, 8, 32)
    return ((g.load_half(groups, 0) * scales)[:, :, None] * levels).reshape(count, 256)


def encode(groups: Floats) -> Bytes:
    x = fitting.columns(groups.reshape(-1, 32))
    factor, scales = fitting.share_signed_scale(fitting.fit_uneven(x, g.UNEVEN_LEVELS).reshape(-1, 8), 32)
    levels = fitting.uneven_levels_of(x, (factor * scales).reshape(-1), g.UNEVEN_LEVELS)
    raised = (scales + np.float32(32)).astype(np.uint8)
    pairs: Bytes = np.bitwise_or.reduce((raised >> 4).reshape(-1, 2, 4) << np.array([0, 2, 4, 6], np.uint8), axis=2)
    nibbles = raised[:, ::2] & 0x0F | raised[:, 1::2] << 4
    return np.concatenate([g.store_half(factor), pairs, nibbles, g.pack_nibbles(levels.T).reshape(-1, 128)], axis=1)


FORMAT = g.grouped_format(name="IQ4_XS", gguf_id=23, group_size=256, group_bytes=136, decode=decode, encode=encode)
