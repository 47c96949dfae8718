"""Integers for grids and blocks. Triton's own functions of these names cost microseconds, hundreds of times a step."""

from __future__ import annotations


def num_parts(count: int, size: int) -> int:
    """Parts of `size`, the last of which may be smaller."""
    return -(-count // size)


def power_of_two(n: int) -> int:
    """The smallest one that is not below n >= 1."""
    return 1 << (n - 1).bit_length()
