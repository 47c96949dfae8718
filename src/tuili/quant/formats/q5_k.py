"""Q5_K: Q4_K with a fifth bit. Bit g of byte j in the 32-byte plane belongs to weight j of group g.

Weight = (d * scale) * level - dmin * minimum.
"""

from __future__ import annotations

import numpy as np

from tuili.quant import fitting
from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    count = groups.shape[0]
    scales, mins = g.unpack_scales_and_mins(groups[:, 4:16])
    scales = g.load_half(groups, 0) * scales  # [n, 8]
    mins = g.load_half(groups, 2) * mins
    fifth_bits = g.unpack_bits(groups[:, 16:48]).reshape(count, 32, 8).swapaxes(1, 2)
    nibbles = g.unpack_nibbles(groups[:, 48:].reshape(-1, 32)).reshape(count, 8, 32)
    levels = (nibbles | fifth_bits << 4).astype(np.float32)
    return (scales[:, :, None] * levels - mins[:, :, None]).reshape(count, 256)


def encode(groups: Floats) -> Bytes:
    fit = fitting.fit_shared_with_min(groups, size=32, top=31, first=-0.5, candidates=16, share_top=63)
    factors = [g.store_half(fit.scale_factor), g.store_half(fit.min_factor)]
    nibbles = g.pack_nibbles((fit.levels & np.uint8(0x0F)).reshape(-1, 64)).reshape(-1, 128)
    fifth_bits = (fit.levels >> np.uint8(4)).reshape(-1, 8, 32).swapaxes(1, 2).reshape(-1, 256)
    scales = g.pack_scales_and_mins(fit.scales, fit.mins)
    return np.concatenate([*factors, scales, g.pack_bits(fifth_bits), nibbles], axis=1)


FORMAT = g.grouped_format(name="Q5_K", gguf_id=13, group_size=256, group_bytes=176, decode=decode, encode=encode)
