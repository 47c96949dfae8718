"""Whose turn it is in the next step, where a backend computes several steps at the same time, each in another stage.

A step needs the tokens that the one before chose for the same answers. So those that run are divided into groups, at
most as many as stages, and a step takes one: while its last token is on its way, other groups' steps fill the other
stages. A group is whoever is free when its step is built, and stays the same as long as nobody comes or goes. A single
group takes every turn: its steps are built ahead from tokens that are carried within the backend.
"""

from __future__ import annotations

from tuili.backend import Backend
from tuili.engine.sequence import Sequence

MIN_GROUP = 8  # answers that a stage hardly computes faster one by one, and never while it waits for the host


class Turns:
    """Of one scheduler."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._is_short = False  # a step ahead found no blocks: the next one is everybody's, who may preempt

    def take(
        self, decodes: list[Sequence], *, has_prompts: bool, is_ahead: bool, can_carry: bool
    ) -> list[Sequence] | None:
        """Those of the decodes whose turn it is, in their order; None: no step can be built yet.

        Prompts go through the stages one behind the other, so that whoever runs beside them takes turns in any case.
        is_ahead: other steps are under way; can_carry: the tokens that they choose may be carried.
        """
        if self._is_short:
            if is_ahead:
                return None
            self._is_short = False
            return decodes
        num_groups = self._num_groups(len(decodes), has_prompts)
        if num_groups == 1:
            if is_ahead and not can_carry:
                return None
            return decodes if self._num_stages == 1 else [s for s in decodes if s.num_awaited < 2]
        return [sequence for sequence in decodes if not sequence.num_awaited][: -(-len(decodes) // num_groups)]

    def wait(self) -> None:
        """Takes note that a step ahead has found no blocks: none is built until nothing is under way."""
        self._is_short = True

    def _num_groups(self, num_decodes: int, has_prompts: bool) -> int:
        return self._num_stages if has_prompts else max(1, min(self._num_stages, num_decodes // MIN_GROUP))


def max_steps(backend: Backend) -> int:
    """How many may be under way: one in each stage, and behind a single one the next."""
    return max(2, backend.num_stages) if backend.is_asynchronous else 1
