"""Q3_K: 256 weights as sixteen groups of 16 with signed 6-bit scales under one float16 factor.

Weight = (d * (scale - 32)) * (level - 4). Bit g of byte j in the 32-byte plane is the third bit of weight j of the g-th
run of 32; the two others are kept as in Q2_K.
"""

from __future__ import annotations

import numpy as np

from tuili.quant import fitting
from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats

_PAIR_SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def decode(groups: Bytes) -> Floats:
    count = groups.shape[0]
    third_bits = g.unpack_bits(groups[:, :32]).reshape(count, 32, 8).swapaxes(1, 2).reshape(count, 256)
    levels = (g.unpack_pairs(groups[:, 32:96]) | third_bits << 2).view(np.int8) - np.int8(4)
    scales = g.load_half(groups, 108) * (_unpack_scales(groups[:, 96:108]) - np.float32(32))  # [n, 16]
    return (scales[:, :, None] * levels.reshape(count, 16, 16).astype(np.float32)).reshape(count, 256)


def _unpack_scales(packed: Bytes) -> Floats:
    """Sixteen 6-bit scales: nibbles in the first 8 bytes, upper pairs in the last 4."""
    pairs = packed[:, None, 8:] >> _PAIR_SHIFTS & 3  # [n, 4, 4]
    return (g.unpack_nibbles(packed[:, :8]) | pairs.reshape(-1, 16) << 4).astype(np.float32)


def encode(groups: Floats) -> Bytes:
    fit = fitting.fit_shared_signed(groups, top=4, share_top=32)
    third_bits = g.pack_bits((fit.levels >> np.uint8(2)).reshape(-1, 8, 32).swapaxes(1, 2).reshape(-1, 256))
    factor = g.store_half(fit.scale_factor)
    return np.concatenate(
        [third_bits, g.pack_pairs(fit.levels & np.uint8(3)), _pack_scales(fit.scales), factor], axis=1
    )


def _pack_scales(scales: Floats) -> Bytes:
    """The inverse of _unpack_scales for integers -32 .. 31, less the 32 that it leaves in."""
    raised = (scales + np.float32(32)).astype(np.uint8)
    pairs: Bytes = np.bitwise_or.reduce((raised >> 4).reshape(-1, 4, 4) << _PAIR_SHIFTS, axis=1)
    return np.concatenate([g.pack_nibbles(raised & np.uint8(0x0F)), pairs], axis=1)


FORMAT = g.grouped_format(name="Q3_K", gguf_id=11, group_size=256, group_bytes=110, decode=decode, encode=encode)
