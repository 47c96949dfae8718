"""Beam search alone: several ways on from one prompt, the best of all their continuations kept at every token.

Hypotheses, scores and the end are transformers'. Knows token ids and log probabilities; no sequences, no blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as ListLike
from typing import NamedTuple

from tuili.beam_search_params import BeamSearchParams

Candidate = tuple[int, float]  # token id and log probability


class Beam(NamedTuple):
    """A way on from the prompt."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0  # of logprobs

    def extended(self, token_id: int, logprob: float) -> Beam:
        return Beam((*self.token_ids, token_id), (*self.logprobs, logprob), self.total + logprob)


class Finished(NamedTuple):
    """A beam that has ended."""

    score: float
    beam: Beam


class BeamSearch:
    """The search over one prompt; `finished` is the result, best first, once advance() returned None."""

    def __init__(self, params: BeamSearchParams, stop_ids: frozenset[int], max_tokens: int) -> None:
        self.beams = [Beam()]  # best first
        self.finished: list[Finished] = []
        self.num_candidates = max(2, 1 + len(stop_ids)) * params.beam_width  # of which beam_width surely go on
        self._params = params
        self._stop_ids = stop_ids
        self._max_tokens = max_tokens

    @property
    def needs_logits(self) -> bool:
        """Whether candidates are weighed by more than the reported log probabilities."""
        return self._params.temperature not in (0.0, 1.0)

    def advance(self, candidates: ListLike[ListLike[Candidate]]) -> list[int] | None:
        """Takes each beam's likeliest next tokens; the new beams' parents, or None when the search is over."""
        width, length = self._params.beam_width, len(self.beams[0].token_ids) + 1
        ranked = sorted(
            (-(beam.total + logprob), parent, token_id, logprob)
            for parent, (beam, found) in enumerate(zip(self.beams, candidates, strict=True))
            for token_id, logprob in found
        )[: self.num_candidates]
        running: list[tuple[int, Beam]] = []
        for rank, (_, parent, token_id, logprob) in enumerate(ranked):
            beam = self.beams[parent].extended(token_id, logprob)
            if token_id not in self._stop_ids and length < self._max_tokens:
                running.append((parent, beam))
            elif rank < width:
                self.finished.append(Finished(self._score(beam.total, length), beam))
        self.finished = sorted(self.finished, key=lambda f: -f.score)[:width]
        running = running[:width]
        if not running or self._is_over(running[0][1], length):
            return None
        self.beams = [beam for _, beam in running]
        return [parent for parent, _ in running]

    def _is_over(self, best: Beam, length: int) -> bool:
        p = self._params
        if len(self.finished) < p.beam_width:
            return False
        if p.early_stopping is True:
            return True
        hopeful = self._max_tokens if p.early_stopping == "never" and p.length_penalty > 0 else length
        return self._score(best.total, hopeful) <= self.finished[-1].score

    def _score(self, total: float, length: int) -> float:
        """Finite for every length: BeamSearchParams bounds the exponent."""
        return total / math.pow(length, self._params.length_penalty)
