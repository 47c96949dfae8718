"""Q4_K: 256 weights as eight groups of 32 with 6-bit scales and minimums under two float16 factors.

Weight = (d * scale) * level - dmin * minimum. Each 32 bytes of nibbles hold two groups: low halves, then high.
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
    levels = g.unpack_nibbles(groups[:, 16:].reshape(-1, 32)).reshape(count, 8, 32).astype(np.float32)
    return (scales[:, :, None] * levels - mins[:, :, None]).reshape(count, 256)


def encode(groups: Floats) -> Bytes:
    fit = fitting.fit_shared_with_min(groups, size=32, top=15, first=-1.0, candidates=21, share_top=63)
    factors = [g.store_half(fit.scale_factor), g.store_half(fit.min_factor)]
    nibbles = g.pack_nibbles(fit.levels.reshape(-1, 64)).reshape(-1, 128)
    return np.concatenate([*factors, g.pack_scales_and_mins(fit.scales, fit.mins), nibbles], axis=1)


FORMAT = g.grouped_format(name="Q4_K", gguf_id=12, group_size=256, group_bytes=144, decode=decode, encode=encode)
