"""How much of a draft to compute: as much as raises the expected tokens per second, by measured costs.

Knows chances and seconds; neither sequences nor tokens' meaning.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence as ListLike
from typing import NamedTuple

PRIOR_SLOPE = 0.1  # what one more row adds, as a share of what the rows below take, until it is measured
MIN_GAIN = 1.03  # less is not worth the risk of a wrong estimate
PROBE_GAIN = 1.3  # a draft that would bring so much if it cost nothing is tried now and then
FIRST_PROBE, LAST_PROBE = 32, 1024  # such drafts passed over between two trials; doubles while none pays


class Draft(NamedTuple):
    """Tokens that may come next, and how likely each is right when all before it are."""

    token_ids: ListLike[int]
    chances: ListLike[float]


NO_DRAFT = Draft((), ())


class StepCosts:
    """Seconds of a decode step by its number of rows, from the steps that have run.

    Kept as a level common to all and a share of each size. Both take half of every correction, so
    that a slower moment or a longer context, seen at one size, moves the others along.
    """

    def __init__(self) -> None:
        self._log_level = 0.0
        self._log_share: dict[int, float] = {}
        self._sizes: list[int] = []  # those measured, ascending

    def observe(self, num_rows: int, seconds: float) -> None:
        """Takes note of a step. An estimate falls quickly and rises slowly: disturbances only ever add time."""
        found = math.log(max(seconds, 1e-9))
        if num_rows not in self._log_share:
            insort(self._sizes, num_rows)
            if len(self._sizes) == 1:
                self._log_level = found
            self._log_share[num_rows] = found - self._log_level
            return
        error = found - self._log_level - self._log_share[num_rows]
        half = min(max(error, -0.5), 0.5) * (0.1 if error < 0 else 0.05)
        self._log_level += half
        self._log_share[num_rows] += half

    def seconds(self, num_rows: int) -> float:
        """The estimate: measured, between two that are, or beyond them along their slope."""
        if num_rows in self._log_share:
            return self._measured(num_rows)
        above = bisect_left(self._sizes, num_rows)
        if above == 0:
            return self._measured(self._sizes[0]) if self._sizes else 1.0
        low = self._sizes[above - 1]
        if above < len(self._sizes):
            high = self._sizes[above]
            slope = (self._measured(high) - self._measured(low)) / (high - low)
        else:
            slope = PRIOR_SLOPE * self._measured(low) / low
            if above > 1:
                before = self._sizes[above - 2]
                slope = max(slope, (self._measured(low) - self._measured(before)) / (low - before))
        return self._measured(low) + slope * (num_rows - low)

    def _measured(self, num_rows: int) -> float:
        return math.exp(self._log_level + self._log_share[num_rows])


class WidthChooser:
    """Shares out rows among the drafts of a step."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._num_passed = 0
        self._patience = FIRST_PROBE

    def choose(self, drafts: ListLike[Draft], max_rows: int) -> list[int]:
        """How many tokens of each draft to compute, at most max_rows together.

        The likeliest come first; their number is the one with the most expected tokens per second.
        """
        gains = sorted(_gains(drafts), key=_chance, reverse=True)[: max(max_rows, 0)]
        count = self._best_count(len(drafts), [chance for chance, _ in gains])
        widths = [0] * len(drafts)
        for _, index in gains[:count]:
            widths[index] += 1
        return widths

    def _best_count(self, num_rows: int, chances: ListLike[float]) -> int:
        """Of the rows with these chances, how many to add to num_rows."""
        most = num_rows + sum(chances)
        expected = float(num_rows)
        plain = expected / self._costs.seconds(num_rows)
        best, best_rate = 0, 0.0
        for count, chance in enumerate(chances, start=1):
            seconds = self._costs.seconds(num_rows + count)
            if most / seconds <= best_rate:  # not even if all the rest were right
                break
            expected += chance
            rate = expected / seconds
            if rate > best_rate:
                best, best_rate = count, rate
        if best_rate >= MIN_GAIN * plain:
            self._num_passed, self._patience = 0, FIRST_PROBE
            return best
        return best if most >= PROBE_GAIN * num_rows and self._is_time_to_probe() else 0

    def _is_time_to_probe(self) -> bool:
        self._num_passed += 1
        if self._num_passed < self._patience:
            return False
        self._num_passed, self._patience = 0, min(2 * self._patience, LAST_PROBE)
        return True


def _gains(drafts: ListLike[Draft]) -> list[tuple[float, int]]:
    """For every token of every draft the chance that it is taken, and the draft's index."""
    found = []
    for index, draft in enumerate(drafts):
        chance = 1.0
        for step in draft.chances:
            chance *= step
            found.append((chance, index))
    return found


def _chance(gain: tuple[float, int]) -> float:
    return gain[0]
