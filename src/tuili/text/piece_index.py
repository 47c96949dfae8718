"""Finds the pieces of a vocabulary that contain a text or end in it, without a look at each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate


class PieceIndex:
    """Over pieces of bytes, which are numbered from 0. Immutable."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._joined = b"".join(pieces)
        self._stops = list(accumulate(map(len, pieces)))
        reversed_pieces = sorted((piece[::-1], number) for number, piece in enumerate(pieces))
        self._reversed = [piece for piece, _ in reversed_pieces]
        self._numbers = [number for _, number in reversed_pieces]

    def containing(self, part: bytes) -> Iterator[int]:
        """Numbers of the pieces with `part`, which is not empty, somewhere in them; ascending."""
        at = self._joined.find(part)
        while at >= 0:
            number = bisect_right(self._stops, at)
            if at + len(part) <= self._stops[number]:
                yield number
                at = self._joined.find(part, self._stops[number])
            else:  # across two pieces
                at = self._joined.find(part, at + 1)

    def ending(self, part: bytes) -> list[int]:
        """Numbers of the pieces that end in `part`, which is not empty."""
        start = part[::-1]
        low = bisect_left(self._reversed, start)
        high = bisect_right(self._reversed, start, lo=low, key=lambda piece: piece[: len(start)])
        return self._numbers[low:high]
