"""Computes tokens on trial: drafts of what may come next, as many as pay.

A draft rides behind a sequence's last token. Its rows choose with the randomness of their own
positions, so the engine takes exactly the tokens it would have chosen one by one; what was drafted
wrongly is forgotten. Knows sequences, blocks and costs; not how a model drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import Protocol

from tuili.config import EngineConfig
from tuili.engine.cache.block_manager import BlockManager
from tuili.engine.drafts.prompt_lookup import PromptLookup
from tuili.engine.drafts.speculative_width import Chances, WidthChooser
from tuili.engine.sequence import Chunk, Sequence
from tuili.engine.step_costs import Foreseen, StepCosts

MAX_TRIED = 0.01  # of the time: what drafts may take that are not known to pay
MAX_LOGPROB_ENTRIES = 1 << 20  # of the rows that a draft adds


class Drafter(Protocol):
    """Guesses how sequences go on."""

    probe_gain: float  # drafts that would bring so much, as a factor, if they cost nothing are tried now and then

    def chances(self, sequence: Sequence, limit: int) -> Chances:
        """How likely each of the next tokens would be guessed right, for those that could be: at most `limit`."""

    def draft(self, wanted: ListLike[tuple[Sequence, int]]) -> list[ListLike[int]]:
        """For each sequence so many tokens, or fewer, of those that chances() was asked about just before."""

    def seconds(self, num_sequences: int) -> float:
        """What guessing one more token for each of so many sequences takes."""

    def release(self, sequence: Sequence) -> None:
        """The sequence leaves its slot: what is kept for it there goes."""

    def forget(self) -> None:
        """Later sequences reuse nothing of what was computed for others."""

    def check(self, running: ListLike[Sequence]) -> None:
        """Asserts that what is kept belongs to running sequences."""


class Speculation:
    """Drafts for the steps of one engine, and what it has learned of their cost."""

    def __init__(
        self,
        drafter: Drafter,
        blocks: BlockManager,
        *,
        max_draft: int,
        max_tokens: int,
        max_slowdown: float | None = None,
        clock: Callable[[], float],
        foreseen: Foreseen,
    ) -> None:
        """Drafts of up to `max_draft` tokens, in steps of up to `max_tokens` and max_slowdown; clock gives seconds.

        foreseen tells how steps of so many rows compare, which may never have run.
        """
        self.drafting_s = 0.0  # of the step under way: what its drafts took
        self._drafter = drafter
        self._clock = clock
        self._blocks = blocks
        self._max_draft = max_draft
        self._max_tokens = max_tokens
        self._costs = StepCosts(foreseen)
        self._chooser = WidthChooser(self._costs, drafter.seconds, drafter.probe_gain, max_slowdown)
        self._num_rows = 0  # of the step under way; 0: it is not comparable
        self._tried_s = self._total_s = 0.0  # what drafts took that were not known to pay, and all steps

    def extend(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step, with drafts behind them where that pays and blocks are free.

        Prompts are not delayed: a step with one gets no drafts.
        """
        self._num_rows, self.drafting_s = 0, 0.0
        if not chunks or not all(map(_is_decode, chunks)):
            return chunks
        sequences = [chunk.sequence for chunk in chunks]
        chances = [self._drafter.chances(sequence, self._limit(sequence)) for sequence in sequences]
        if any(chances):
            widths = self._chooser.choose(chances, self._max_tokens - len(chunks))
            if self._chooser.pays or self._tried_s <= MAX_TRIED * self._total_s:
                chunks = self._with_drafts(chunks, self._draft(sequences, widths))
        self._num_rows = sum(chunk.num_tokens for chunk in chunks)
        return chunks

    def release(self, sequence: Sequence) -> None:
        """The sequence leaves its slot."""
        self._drafter.release(sequence)

    def forget(self) -> None:
        """Later sequences reuse nothing computed so far."""
        self._drafter.forget()

    def check(self, running: ListLike[Sequence]) -> None:
        """As Drafter.check."""
        self._drafter.check(running)

    def observe(self, seconds: float) -> None:
        """Learns from the time the last step took beside drafting_s."""
        self._total_s += seconds
        if self._num_rows:
            self._costs.observe(self._num_rows, seconds)

    def _draft(self, sequences: ListLike[Sequence], widths: ListLike[int]) -> list[ListLike[int]]:
        started = self._clock()
        drafts = self._drafter.draft(list(zip(sequences, widths, strict=True)))
        self.drafting_s = self._clock() - started
        if not self._chooser.pays:
            self._tried_s += self.drafting_s
        return drafts

    def _limit(self, sequence: Sequence) -> int:
        """Draft tokens that could be taken: the last of an answer need not be computed."""
        if sequence.beams is not None or not sequence.sampling.allows_drafts:
            return 0
        limit = min(self._max_draft, sequence.max_len - sequence.num_tokens - 1)
        if sequence.num_logprobs > 0:
            limit = min(limit, MAX_LOGPROB_ENTRIES // sequence.num_logprobs)
        return max(limit, 0)

    def _with_drafts(self, chunks: list[Chunk], drafts: ListLike[ListLike[int]]) -> list[Chunk]:
        """The chunks with as much of the drafts as the step's tokens and the free blocks allow."""
        room = self._max_tokens - len(chunks)
        extended = []
        for chunk, draft in zip(chunks, drafts, strict=True):
            end = chunk.end + min(len(draft), room)
            if end > chunk.end and self._blocks.grow(chunk.sequence.slot, chunk.start, end):
                chunk = chunk._replace(draft=tuple(draft[: end - chunk.end]))
                room -= len(chunk.draft)
            extended.append(chunk)
        return extended


def speculation(
    config: EngineConfig,
    blocks: BlockManager,
    drafter: Drafter | None,
    clock: Callable[[], float],
    foreseen: Foreseen,
) -> Speculation | None:
    """As `config` asks; without a drafter the text is looked up in itself. See Speculation."""
    if config.speculative is None:
        return None
    assert drafter is not None or config.speculative.method == "ngram", "no draft model was given"
    return Speculation(
        drafter or PromptLookup(config.speculative),
        blocks,
        max_draft=config.speculative.num_speculative_tokens,
        max_tokens=config.max_num_batched_tokens,
        max_slowdown=config.max_slowdown,
        clock=clock,
        foreseen=foreseen,
    )


def _is_decode(chunk: Chunk) -> bool:
    return chunk.end - chunk.start == 1 and len(chunk.samples) == 1
