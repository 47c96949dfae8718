"""What decode steps take by their number of rows, learned from those that ran. Knows seconds; no sequences."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import TypeAlias

Foreseen: TypeAlias = Callable[[int], float]
NUM_FIRST = 3  # times a size is measured before it counts as known: cold caches make the first ones slow


class StepCosts:
    """Seconds of a decode step by its number of rows, from the steps that have run.

    Kept as a level common to all and a share of each size. Both take half of every correction, so
    that a slower moment or a longer context, seen at one size, moves the others along.
    """

    def __init__(self, foreseen: Foreseen) -> None:
        """More rows than any step had are expected to take as many times longer as `foreseen` says."""
        self._foreseen = foreseen
        self._log_level = 0.0
        self._log_share: dict[int, float] = {}
        self._sizes: list[int] = []  # those measured, ascending
        self._num_first: dict[int, int] = {}  # of each size: measurements to come before it counts as known

    def observe(self, num_rows: int, seconds: float) -> None:
        """Takes note of a step. An estimate falls quickly and rises slowly: disturbances only ever add time."""
        found = math.log(max(seconds, 1e-9))
        if num_rows not in self._log_share:
            insort(self._sizes, num_rows)
            if len(self._sizes) == 1:
                self._log_level = found
            self._log_share[num_rows] = found - self._log_level
            self._num_first[num_rows] = NUM_FIRST - 1
            return
        error = found - self._log_level - self._log_share[num_rows]
        if self._num_first[num_rows]:
            self._num_first[num_rows] -= 1
            self._log_share[num_rows] += min(error, 0.0)
            return
        half = min(max(error, -0.5), 0.5) * (0.1 if error < 0 else 0.05)
        self._log_level += half
        self._log_share[num_rows] += half

    def reaches(self, num_rows: int) -> bool:
        """Whether a step of so many rows, or fewer, was measured."""
        return bool(self._sizes) and self._sizes[0] <= num_rows

    def seconds(self, num_rows: int) -> float:
        """The estimate: measured, between two that are, or beyond them as foreseen, if not along a steeper slope."""
        if num_rows in self._log_share:
            return self._measured(num_rows)
        above = bisect_left(self._sizes, num_rows)
        if above == 0:
            return self._measured(self._sizes[0]) if self._sizes else 1.0
        low = self._sizes[above - 1]
        if above < len(self._sizes):
            high = self._sizes[above]
            slope = (self._measured(high) - self._measured(low)) / (high - low)
            return self._measured(low) + slope * (num_rows - low)
        at_low = self._measured(low)
        seconds = at_low * self._foreseen(num_rows) / self._foreseen(low)
        if above == 1:
            return seconds
        before = self._sizes[above - 2]
        slope = (at_low - self._measured(before)) / (low - before)
        return max(seconds, at_low + slope * (num_rows - low))

    def _measured(self, num_rows: int) -> float:
        return math.exp(self._log_level + self._log_share[num_rows])
