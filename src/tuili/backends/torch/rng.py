"""Philox4x32-10 for many rows at once, on the host, which knows their counters. 32-bit words are kept in uint64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Int32, UInt64

MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
PURPOSE_TOKEN, PURPOSE_XTC = 0, 1
_MASK32 = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: UInt64, key: UInt64) -> UInt64:
    """counter uint64 [4, N], key uint64 [2, N] -> uint64 [4, N] (Salmon et al., 2011)."""
    even, odd = counter[0::2], counter[1::2]
    for _ in range(_ROUNDS):
        product = even * MULTIPLIERS
        even, odd = (product >> _HALF)[::-1] ^ odd ^ key, (product & _MASK32)[::-1]
        key = (key + WEYL) & _MASK32
    return np.stack((even, odd), 1).reshape(4, -1)


def uniforms(seeds: UInt64, positions: Int32, sample_indexes: Int32, purpose: int) -> NDArray[np.float64]:
    """[N] in [0, 1), of 53 bits each."""
    counter = np.zeros((4, len(seeds)), np.uint64)
    counter[0], counter[1], counter[2] = positions, sample_indexes, purpose
    x0, x1, _, _ = philox4x32(counter, np.stack((seeds & _MASK32, seeds >> _HALF)))
    bits = (x0 << np.uint64(21)) ^ (x1 >> np.uint64(11))
    found: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return found
