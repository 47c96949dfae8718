"""Computes tokens on trial: drafts of what may come next, as many as pay.

A draft rides behind a sequence's last token. Its rows choose with the randomness of their own
positions, so the engine takes exactly the tokens it would have chosen one by one; what was drafted
wrongly is forgotten. Knows sequences, blocks and costs; not how a draft is found.
"""

from __future__ import annotations

from typing import Protocol

from tuili.engine.block_manager import BlockManager
from tuili.engine.sequence import Chunk, Sequence
from tuili.engine.speculative_width import NO_DRAFT, Draft, WidthChooser
from tuili.engine.step_costs import StepCosts

MAX_LOGPROB_ENTRIES = 1 << 20  # of the rows that a draft adds


class Drafter(Protocol):
    """Guesses how sequences go on."""

    def propose(self, sequence: Sequence, limit: int) -> Draft:
        """At most `limit` tokens, or none."""


class Speculation:
    """Drafts for the steps of one engine, and what it has learned of their cost."""

    def __init__(self, drafter: Drafter, blocks: BlockManager, *, max_draft: int, max_tokens: int) -> None:
        """Drafts of up to `max_draft` tokens, in steps of up to `max_tokens`."""
        self._drafter = drafter
        self._blocks = blocks
        self._max_draft = max_draft
        self._max_tokens = max_tokens
        self._costs = StepCosts()
        self._chooser = WidthChooser(self._costs)
        self._num_rows = 0  # of the step under way; 0: it is not comparable

    def extend(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step, with drafts behind them where that pays and blocks are free.

        Prompts are not delayed: a step with one gets no drafts.
        """
        self._num_rows = 0
        if not chunks or not all(map(_is_decode, chunks)):
            return chunks
        drafts = [self._proposed(chunk.sequence) for chunk in chunks]
        if any(draft.token_ids for draft in drafts):
            widths = self._chooser.choose(drafts, self._max_tokens - len(chunks))
            chunks = [self._drafted(*item) for item in zip(chunks, drafts, widths, strict=True)]
        self._num_rows = sum(chunk.num_tokens for chunk in chunks)
        return chunks

    def observe(self, seconds: float) -> None:
        """Learns from the time the last step took."""
        if self._num_rows:
            self._costs.observe(self._num_rows, seconds)

    def _proposed(self, sequence: Sequence) -> Draft:
        limit = self._limit(sequence)
        return self._drafter.propose(sequence, limit) if limit > 0 else NO_DRAFT

    def _limit(self, sequence: Sequence) -> int:
        """Draft tokens that could be taken: the last of an answer need not be computed."""
        if sequence.beams is not None or not sequence.sampling.allows_drafts:
            return 0
        limit = min(self._max_draft, sequence.max_len - sequence.num_tokens - 1)
        if sequence.num_logprobs > 0:
            limit = min(limit, MAX_LOGPROB_ENTRIES // sequence.num_logprobs)
        return limit

    def _drafted(self, chunk: Chunk, draft: Draft, width: int) -> Chunk:
        if not width or not self._blocks.grow(chunk.sequence.slot, chunk.start, chunk.end + width):
            return chunk
        return chunk._replace(draft=tuple(draft.token_ids[:width]))


def _is_decode(chunk: Chunk) -> bool:
    return chunk.end - chunk.start == 1 and len(chunk.samples) == 1
