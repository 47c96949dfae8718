"""How much of a draft to compute: as much as raises the expected tokens per second, by measured costs.

Knows chances and seconds; neither sequences nor tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import NamedTuple

from tuili.engine.step_costs import StepCosts

MIN_GAIN = 1.03  # less is not worth the risk of a wrong estimate
DRAFT_SHARE = 0.5  # of the time that max_slowdown adds to a step: others' prompts must be computed, drafts need not
FIRST_PROBE, LAST_PROBE = 32, 1024  # such drafts passed over between two trials; doubles while none pays


Chances = ListLike[float]  # how likely each token of a draft is right when all before it are


class Chance:
    """How often guesses are right: a mean over those compared, in which the latest count most."""

    PRIOR_WEIGHT = 4.0
    MEMORY = 0.95  # weight of the past at each new guess

    __slots__ = ("_hits", "_weight")

    def __init__(self, prior: float) -> None:
        self._weight = self.PRIOR_WEIGHT
        self._hits = prior * self._weight

    @property
    def value(self) -> float:
        return self._hits / self._weight

    def learn(self, was_right: bool) -> None:
        self._hits = self.MEMORY * self._hits + was_right
        self._weight = self.MEMORY * self._weight + 1


class Gain(NamedTuple):
    """One token of a draft."""

    chance: float  # that it is taken
    draft: int  # its place in the step
    depth: int  # tokens of the draft before it


class WidthChooser:
    """Shares out rows among the drafts of a step."""

    def __init__(
        self,
        costs: StepCosts,
        drafting: Callable[[int], float],
        probe_gain: float,
        max_slowdown: float | None = None,
    ) -> None:
        """`drafting` says what guessing the next token of so many drafts takes, in seconds.

        Drafts that would bring `probe_gain` if they cost nothing are tried now and then. They add at most DRAFT_SHARE
        of what max_slowdown adds to a step: who reads feels the step, not the tokens it brings.
        """
        self._costs = costs
        self._drafting = drafting
        self._probe_gain = probe_gain
        self._max_slowdown = math.inf if max_slowdown is None else 1 + DRAFT_SHARE * (max_slowdown - 1)
        self.pays = False  # whether the last choice was made for its gain
        self._num_passed = 0
        self._patience = FIRST_PROBE

    def choose(self, drafts: ListLike[Chances], max_rows: int) -> list[int]:
        """How many tokens of each draft to compute, at most max_rows together.

        The likeliest come first; their number is the one with the most expected tokens per second.
        """
        gains = sorted(_gains(drafts), key=_chance, reverse=True)[: max(max_rows, 0)]
        widths = [0] * len(drafts)
        for gain in gains[: self._best_count(len(drafts), gains)]:
            widths[gain.draft] += 1
        return widths

    def _best_count(self, num_rows: int, gains: ListLike[Gain]) -> int:
        """How many of the gains to add to num_rows; none before it is known what these take alone."""
        self.pays = False
        if not self._costs.reaches(num_rows):
            return 0
        most = num_rows + sum(map(_chance, gains))
        expected = float(num_rows)
        plain_s = self._costs.seconds(num_rows)
        plain = expected / plain_s
        best, best_rate, steady, steady_rate = 0, 0.0, 0, 0.0
        drafting = [0.0, *map(self._drafting, range(1, num_rows + 1))]
        drafting_s, num_at_depth = 0.0, [0] * (len(gains) + 1)
        for count, (chance, _, depth) in enumerate(gains, start=1):
            num_at_depth[depth] += 1
            drafting_s += drafting[num_at_depth[depth]] - drafting[num_at_depth[depth] - 1]
            seconds = self._costs.seconds(num_rows + count) + drafting_s
            if most / seconds <= best_rate:  # not even if all the rest were right
                break
            expected += chance
            rate = expected / seconds
            if rate > best_rate:
                best, best_rate = count, rate
            if rate > steady_rate and seconds <= self._max_slowdown * plain_s:
                steady, steady_rate = count, rate
        self.pays = steady_rate >= MIN_GAIN * plain
        if self.pays:
            self._num_passed, self._patience = 0, FIRST_PROBE
            return steady
        if most < self._probe_gain * num_rows or not self._is_time_to_probe():
            return 0
        return steady or (best + 1) // 2  # of steps believed too slow, too: estimates from one bad moment would stay

    def _is_time_to_probe(self) -> bool:
        self._num_passed += 1
        if self._num_passed < self._patience:
            return False
        self._num_passed, self._patience = 0, min(2 * self._patience, LAST_PROBE)
        return True


def _gains(drafts: ListLike[Chances]) -> list[Gain]:
    found = []
    for index, chances in enumerate(drafts):
        chance = 1.0
        for depth, step in enumerate(chances):
            chance *= step
            found.append(Gain(chance, index, depth))
    return found


def _chance(gain: Gain) -> float:
    return gain.chance
