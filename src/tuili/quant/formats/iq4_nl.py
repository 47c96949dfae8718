"""IQ4_NL: 32 weights as a float16 scale and nibbles that choose among sixteen uneven levels. Weight = scale * level."""

from __future__ import annotations

import numpy as np

from tuili.quant import fitting
from tuili.quant import groups as g
from tuili.quant.format import Bytes, Floats


def decode(groups: Bytes) -> Floats:
    return g.load_half(groups, 0) * g.UNEVEN_LEVELS[g.unpack_nibbles(groups[:, 2:])]


def encode(groups: Floats) -> Bytes:
    x = fitting.columns(groups)
    scale = g.store_half(fitting.fit_uneven(x, g.UNEVEN_LEVELS)[:, None])
    levels = fitting.uneven_levels_of(x, g.load_half(scale, 0)[:, 0], g.UNEVEN_LEVELS).T
    return np.concatenate([scale, g.pack_nibbles(levels)], axis=1)


FORMAT = g.grouped_format(name="IQ4_NL", gguf_id=20, group_size=32, group_bytes=18, decode=decode, encode=encode)
