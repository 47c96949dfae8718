"""How many prompt tokens a step takes beside running answers, so that these do not stall.

A step that also computes prompts may take `max_slowdown` times the decodes of all who run or are about to: measured
by the few who have begun, a crowd that arrives would be let in drop by drop, and the batch never fill. What decodes and
prompt tokens take is learned from the steps that ran: attention makes late tokens of a prompt
dearer, and the machine may be busy. Knows numbers of tokens and seconds; no sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as ListLike

from tuili.engine.step_costs import StepCosts

ROW_TILE = 8  # shares are multiples of it; also the least that a prompt advances in a step
MAX_UNSEEN_STEPS = 64  # with prompts, until one without shows anew what the decodes take alone

PromptSpan = tuple[int, int]  # first token and number of tokens


class PromptCosts:
    """Seconds that a prompt token adds to a step: a line over its position, by least squares over recent steps."""

    _KEPT = 0.95  # of what is known, at every step
    _MAX_RISE = 2.0  # by which one step may exceed what was expected of it: disturbances only ever add time

    def __init__(self) -> None:
        self._weight = self._mean_position = self._mean_cost = 0.0
        self._position_variance = self._covariance = 0.0  # each times weight

    def observe(self, spans: ListLike[PromptSpan], seconds: float) -> None:
        """Takes note of what these tokens added to one step."""
        count = sum(size for _, size in spans)
        position = sum(size * (start + size / 2) for start, size in spans) / count
        cost = max(seconds, 0.0) / count
        if self._weight:
            cost = min(cost, self._MAX_RISE * self._at(position))
        self._weight = self._KEPT * self._weight + 1
        gain, shift = 1 / self._weight, position - self._mean_position
        self._position_variance = self._KEPT * self._position_variance + (1 - gain) * shift * shift
        self._covariance = self._KEPT * self._covariance + (1 - gain) * shift * (cost - self._mean_cost)
        self._mean_position += gain * shift
        self._mean_cost += gain * (cost - self._mean_cost)

    def seconds(self, start: int, size: int) -> float:
        """What `size` tokens from `start` on will add to a step."""
        return size * (self._at(start) + self._slope * size / 2)

    def num_tokens(self, start: int, seconds: float) -> int:
        """How many tokens from `start` on add no more than `seconds`."""
        if not self._weight or seconds <= 0:
            return 0
        first, slope = self._at(start), self._slope
        return int(2 * seconds / (first + math.sqrt(first * first + 2 * slope * seconds)))

    @property
    def _slope(self) -> float:
        """Seconds by which a token is dearer than the one before; never negative."""
        return max(self._covariance / self._position_variance, 0.0) if self._position_variance else 0.0

    def _at(self, position: float) -> float:
        least = 0.1 * self._mean_cost
        return max(self._mean_cost + self._slope * (position - self._mean_position), least, 1e-9)


class Pace:
    """The share of prompts in every step of one engine."""

    def __init__(self, max_slowdown: float | None) -> None:
        """None: prompts take all the tokens of a step that decodes leave."""
        self._max_slowdown = max_slowdown
        self._decode_costs = StepCosts()
        self._prompt_costs = PromptCosts()
        self._num_unseen = MAX_UNSEEN_STEPS  # steps since one of decodes alone
        self._seconds_left = math.inf
        self._is_first = True

    def begin(self, num_decodes: int, num_prompts: int = 0) -> None:
        """Starts a step that computes so many tokens of running answers, while so many prompts have a place."""
        self._seconds_left, self._is_first = math.inf, True
        if self._max_slowdown is None or not num_decodes:
            return
        if self._num_unseen >= MAX_UNSEEN_STEPS:
            self._seconds_left, self._is_first = 0.0, False
        else:
            alone, soon = map(self._decode_costs.seconds, (num_decodes, num_decodes + num_prompts))
            self._seconds_left = self._max_slowdown * soon - alone

    def take(self, start: int, limit: int) -> int:
        """How many of at most `limit` prompt tokens from `start` on the step computes; 0: it is full."""
        if self._seconds_left == math.inf:
            return limit
        size = self._prompt_costs.num_tokens(start, self._seconds_left) // ROW_TILE * ROW_TILE
        size = min(max(size, ROW_TILE if self._is_first else 0), limit)
        if size:
            self._seconds_left -= self._prompt_costs.seconds(start, size)
            self._is_first = False
        return size

    def observe(self, num_decodes: int, prompts: ListLike[PromptSpan], seconds: float) -> None:
        """Learns from the time that a step took."""
        if self._max_slowdown is None:
            return
        if not prompts:
            self._decode_costs.observe(num_decodes, seconds)
            self._num_unseen = 0
            return
        self._num_unseen += 1
        alone = self._decode_costs.seconds(num_decodes) if num_decodes else 0.0
        self._prompt_costs.observe(prompts, seconds - alone)
