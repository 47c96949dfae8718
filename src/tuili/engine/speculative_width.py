"""How much of a draft to compute: as much as raises the expected tokens per second, by measured costs.

Knows chances and seconds; neither sequences nor tokens' meaning.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from typing import NamedTuple

from tuili.engine.step_costs import StepCosts

MIN_GAIN = 1.03  # less is not worth the risk of a wrong estimate
PROBE_GAIN = 1.3  # a draft that would bring so much if it cost nothing is tried now and then
FIRST_PROBE, LAST_PROBE = 32, 1024  # such drafts passed over between two trials; doubles while none pays


class Draft(NamedTuple):
    """Tokens that may come next, and how likely each is right when all before it are."""

    token_ids: ListLike[int]
    chances: ListLike[float]


NO_DRAFT = Draft((), ())


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
