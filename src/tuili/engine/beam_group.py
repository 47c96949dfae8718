"""A beam search carried by sequences, which share their blocks up to where beams part.

A beam that has told its candidates waits for the others, idle; where room is short it is parked: taken off the
scheduler, to be computed anew if it goes on.
"""

from __future__ import annotations

import numpy as np

from tuili.backend import StepResult
from tuili.engine.beam_search import BeamSearch, Candidate
from tuili.engine.scheduler import Scheduler
from tuili.engine.sequence import Sequence, Status
from tuili.types import BeamScore, TokenDelta


class BeamGroup:
    """The sequences that carry the beams of one request, in the order of the search's beams."""

    def __init__(self, first: Sequence, search: BeamSearch, temperature: float) -> None:
        self.search = search
        self.sequences = [first]
        self.is_void = False  # logits hold nothing to choose
        self._temperature = temperature
        self._told: dict[int, list[Candidate]] = {}  # candidates by the sequence's index
        self._num_indexes = 1

    @property
    def is_ready(self) -> bool:
        """Whether every beam has told its candidates."""
        return len(self._told) == len(self.sequences)

    def tell(self, sequence: Sequence, result: StepResult, row: int) -> None:
        """Takes note of the candidates behind one beam."""
        self.is_void |= bool(result.token_ids[row] < 0)
        count = min(self.search.num_candidates, result.top_ids.shape[1])
        ids = result.top_ids[row, :count]
        logprobs = result.top_logprobs[row, :count]
        if self.search.needs_logits:
            scaled = result.logits_of(row).astype(np.float64) / self._temperature
            top = scaled.max()
            logprobs = scaled[ids] - (top + np.log(np.exp(scaled - top).sum()))
        self._told[sequence.indexes[0]] = list(zip(ids.tolist(), logprobs.tolist(), strict=True))

    def advance(self, scheduler: Scheduler, live: list[Sequence]) -> bool:
        """Chooses the next beams and moves the sequences along; False when the search is over."""
        parents = self.search.advance([self._told[s.indexes[0]] for s in self.sequences])
        self._told.clear()
        if parents is None:
            return False
        for i, sequence in enumerate(self.sequences):
            if i not in parents:
                self._drop(sequence, scheduler, live)
        carriers = [self._carrier(parents, i, scheduler, live) for i in range(len(parents))]
        for carrier, beam in zip(carriers, self.search.beams, strict=True):
            carrier.token_ids.append(beam.token_ids[-1])
        self.sequences = carriers
        return True

    def park(self, sequence: Sequence, scheduler: Scheduler, live: list[Sequence]) -> None:
        """Takes a beam that has told its candidates off the scheduler, so that others find room."""
        assert sequence.indexes[0] in self._told
        self._drop(sequence, scheduler, live)

    def results(self) -> list[TokenDelta]:
        """The terminal deltas once the search is over."""
        first = self.sequences[0]
        deltas = []
        for index, (score, beam) in enumerate(self.search.finished):
            is_stopped = beam.token_ids[-1] in first.stop_ids
            deltas.append(
                TokenDelta(
                    request_id=first.request.request_id,
                    index=index,
                    token_ids=beam.token_ids,
                    finish_reason="stop" if is_stopped else "length",
                    stop_token_id=beam.token_ids[-1] if is_stopped else None,
                    beam=BeamScore(score, beam.total, beam.logprobs),
                    num_cached_tokens=first.num_cached_tokens or 0,
                    cache_miss=first.cache_miss,
                    scheduled_s=first.scheduled_s,
                )
            )
        return deltas

    def _carrier(self, parents: list[int], i: int, scheduler: Scheduler, live: list[Sequence]) -> Sequence:
        """The sequence of new beam i: its parent's, for the parent's first child, else a twin of that."""
        parent = self.sequences[parents[i]]
        if parents.index(parents[i]) < i:
            self._num_indexes += 1
            twin = scheduler.fork(parent, self._num_indexes - 1)
            live.append(twin)
            return twin
        if parent.status is Status.FINISHED:  # parked
            parent.num_computed_tokens = 0
            scheduler.add(parent)
            live.append(parent)
        return parent

    def _drop(self, sequence: Sequence, scheduler: Scheduler, live: list[Sequence]) -> None:
        if sequence.status is not Status.FINISHED:
            scheduler.finish(sequence)
            live.remove(sequence)
