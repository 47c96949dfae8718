"""Q6_K: 256 weights as sixteen groups of 16 with signed 8-bit scales under one float16 factor.

Weight = (d * scale) * (level - 32). Each half of 128 weights takes 64 bytes of nibbles (low halves of the
64, then high) and 32 bytes of upper bit pairs (pair p of byte j belongs to weight 32 p + j).
"""

from __future__ import annotations

import numpy as np

from tuili.quant import fitting
from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    count = groups.shape[0]
    nibbles = g.unpack_nibbles(groups[:, :128].reshape(-1, 64)).reshape(count, 2, 4, 32)
    pairs = g.unpack_pairs(groups[:, 128:192]).reshape(count, 2, 4, 32)
    levels = (nibbles | pairs << 4).view(np.int8) - np.int8(32)
    scales = g.load_half(groups, 208) * groups[:, 192:208].view(np.int8).astype(np.float32)  # [n, 16]
    return (scales[:, :, None] * levels.reshape(count, 16, 16).astype(np.float32)).reshape(count, 256)


def encode(groups: Floats) -> Bytes:
    fit = fitting.fit_shared_signed(groups, top=32, share_top=128)
    nibbles = g.pack_nibbles((fit.levels & np.uint8(0x0F)).reshape(-1, 128)).reshape(-1, 128)
    scales = fit.scales.astype(np.int8).view(np.uint8)
    return np.concatenate(
        [nibbles, g.pack_pairs(fit.levels >> np.uint8(4)), scales, g.store_half(fit.scale_factor)], axis=1
    )


FORMAT = g.grouped_format(name="Q6_K", gguf_id=14, group_size=256, group_bytes=210, decode=decode, encode=encode)
