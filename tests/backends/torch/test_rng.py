"""The published vectors, and the reference's numbers, for many rows at once."""

from __future__ import annotations

import numpy as np

from tuili.backends.reference.sampling import uniform
from tuili.backends.torch.rng import philox4x32, uniforms

FULL = 0xFFFFFFFF


def test_philox_known_answers() -> None:
    """The kat_vectors of Random123."""
    counters = np.array([[0] * 4, [FULL] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint64).T
    keys = np.array([[0, 0], [FULL, FULL], [0xA4093822, 0x299F31D0]], np.uint64).T
    assert philox4x32(counters, keys).T.tolist() == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]


def test_uniforms_are_the_references() -> None:
    rng = np.random.default_rng(5)
    seeds = np.concatenate((rng.integers(0, 2**64, 400, np.uint64), np.array([0, 2**63, 2**64 - 1], np.uint64)))
    positions, indexes = rng.integers(0, 2**31, 403, np.int32), rng.integers(0, 128, 403, np.int32)
    for purpose in (0, 1):
        rows = zip(seeds.tolist(), positions.tolist(), indexes.tolist(), strict=True)
        assert uniforms(seeds, positions, indexes, purpose).tolist() == [uniform(*row, purpose) for row in rows]
