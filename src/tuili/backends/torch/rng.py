"""Philox4x32-10 for many rows at once, on whatever device its tensors are. 32-bit words are kept in int64."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
PURPOSE_TOKEN, PURPOSE_XTC = 0, 1
_MASK32 = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """counter int64 [4, N], key int64 [2, N] -> int64 [4, N] (Salmon et al., 2011).

    A product of two words wraps in int64, whose bits are the right ones all the same.
    """
    even, odd = counter[0::2], counter[1::2]
    multipliers = torch.tensor(MULTIPLIERS, device=counter.device)[:, None]
    weyl = torch.tensor(WEYL, device=counter.device)[:, None]
    for i in range(_ROUNDS):
        product = even * multipliers
        high, low = (product >> 32) & _MASK32, product & _MASK32
        even, odd = high.flip(0) ^ odd ^ ((key + i * weyl) & _MASK32), low.flip(0)
    return torch.stack((even, odd), 1).flatten(0, 1)


def uniforms(seeds: Tensor, positions: Tensor, sample_indexes: Tensor, purpose: int) -> Tensor:
    """float64 [N] in [0, 1), of 53 bits each. seeds int64 [N] hold the bits of the unsigned ones."""
    counter = torch.stack((positions, sample_indexes, torch.full_like(seeds, purpose), torch.zeros_like(seeds)))
    words = philox4x32(counter.long(), torch.stack((seeds & _MASK32, (seeds >> 32) & _MASK32)))
    bits = (words[0] << 21) ^ (words[1] >> 11)
    return bits.double() * 2.0**-53
