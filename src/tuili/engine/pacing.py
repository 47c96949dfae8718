"""How many prompt tokens a step takes beside running answers, so that these do not stall.

A step that also computes prompts may take `max_slowdown` times the decodes of all who run or are about to: measured
by the few who have begun, a crowd that arrives would be let in drop by drop, and the batch never fill. What decodes and
prompt tokens take is learned from the steps that ran: attention makes late tokens of a prompt
dearer, and the machine may be busy. Knows numbers of tokens and seconds; no sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as ListLike

from tuili.engine.step_model import PromptSpan, StepModel

ROW_TILE = 8  # shares are multiples of it; also the least that a prompt advances in a step: fewer read as much before
MAX_UNSEEN_STEPS = 64  # with prompts, until one without shows anew what the decodes take alone


class Pace:
    """The share of prompts in every step of one engine."""

    def __init__(self, max_slowdown: float | None, costs: StepModel) -> None:
        """None: prompts take all the tokens of a step that decodes leave. costs learns from every step all the same."""
        self._max_slowdown = max_slowdown
        self._costs = costs
        self._num_unseen = MAX_UNSEEN_STEPS  # steps since one of decodes alone
        self._seconds_left = math.inf
        self._is_first = True

    def begin(self, num_decodes: int, num_prompts: int) -> None:
        """Starts a step that computes so many tokens of running answers, while so many prompts have a place."""
        self._seconds_left, self._is_first = math.inf, True
        if self._max_slowdown is None or not num_decodes or not num_prompts:
            return
        if self._num_unseen >= MAX_UNSEEN_STEPS:
            self._seconds_left, self._is_first = 0.0, False
        else:
            alone, soon = map(self._costs.seconds, (num_decodes, num_decodes + num_prompts))
            self._seconds_left = self._max_slowdown * soon - alone

    def take(self, start: int, limit: int) -> int:
        """How many of at most `limit` prompt tokens from `start` on the step computes; 0: it is full."""
        if self._seconds_left == math.inf:
            return limit
        size = self._costs.num_tokens(start, self._seconds_left) // ROW_TILE * ROW_TILE
        size = min(max(size, ROW_TILE if self._is_first else 0), limit)
        if size:
            self._seconds_left -= self._costs.added(start, size)
            self._is_first = False
        return size

    def observe(self, num_decodes: int, prompts: ListLike[PromptSpan], seconds: float) -> None:
        """Learns from the time that a step took."""
        self._num_unseen = self._num_unseen + 1 if prompts else 0
        self._costs.observe(num_decodes, prompts, seconds)
