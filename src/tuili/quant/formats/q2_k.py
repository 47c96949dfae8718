"""Q2_K: 256 weights as sixteen groups of 16 with 4-bit scales and minimums under two float16 factors.

Weight = (d * scale) * level - dmin * minimum. A byte holds a scale in its low and a minimum in its high half; each 32
bytes of levels hold four runs of 32 weights, two bits each.
"""

from __future__ import annotations

import numpy as np

from tuili.quant import fitting
from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    count = groups.shape[0]
    scales = g.load_half(groups, 80) * (groups[:, :16] & 0x0F).astype(np.float32)  # [n, 16]
    mins = g.load_half(groups, 82) * (groups[:, :16] >> 4).astype(np.float32)
    levels = g.unpack_pairs(groups[:, 16:80]).reshape(count, 16, 16).astype(np.float32)
    return (scales[:, :, None] * levels - mins[:, :, None]).reshape(count, 256)


def encode(groups: Floats) -> Bytes:
    fit = fitting.fit_shared_with_min(groups, size=16, top=3, first=-0.5, candidates=16, share_top=15)
    scales = fit.scales.astype(np.uint8) | fit.mins.astype(np.uint8) << 4
    factors = [g.store_half(fit.scale_factor), g.store_half(fit.min_factor)]
    return np.concatenate([scales, g.pack_pairs(fit.levels), *factors], axis=1)


FORMAT = g.grouped_format(name="Q2_K", gguf_id=10, group_size=256, group_bytes=84, decode=decode, encode=encode)
