"""Drafts by a smaller model with the same vocabulary, which runs a few tokens ahead of every sequence.

Its tokens are drawn with the randomness of the target's own positions, so that where the two models
agree on a distribution they draw the same token. It keeps a cache of its own under the target's
slots, follows a sequence only where drafts are wanted, and is never waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import NamedTuple

from tuili.backend import Backend, Batch, StepResult
from tuili.config import EngineConfig
from tuili.engine.batch import BatchBuilder
from tuili.engine.cache.block_manager import BlockManager
from tuili.engine.cache.block_pool import BlockPool
from tuili.engine.drafts.speculative_width import Chance
from tuili.engine.sequence import Chunk, Sequence
from tuili.engine.step_costs import StepCosts

FIRST_CHANCE = 0.7  # of a guess to be right, before any was compared
MIN_CHANCE = 0.05  # of a draft's token to be taken; what is less likely is not guessed
FIRST_LEN = 2  # of drafts until their cost is known
MAX_FED = 16  # tokens behind up to which a sequence's first guess takes them along
CATCH_UP_TOKENS = 32  # of texts that lie further behind, in one step of the target
FIXED_ROWS = 9  # a step takes as long as so many more rows would, until several sizes were measured
MAX_LAG = 8  # tokens to catch up on for each that may still come; more would not pay

_log = logging.getLogger(__name__)


class DraftBackend(NamedTuple):
    """A loaded draft model. Whoever loaded it closes it."""

    backend: Backend
    max_model_len: int  # longer texts get no drafts


class Follower:
    """What the draft model has of one sequence: the text known so far, and its guesses behind that.

    0 .......... num_computed ....... num_known ........ twin.num_tokens
    | in the cache | to compute next | guesses, until they are compared |
    """

    def __init__(self, sequence: Sequence, overall: Chance) -> None:
        self.sequence = sequence
        self.twin = sequence.stand_in()
        self.num_known = sequence.num_tokens
        self.num_computed = 0
        self.num_registered = 0  # blocks
        self.wanted = 0  # guesses, as soon as it has caught up
        self.chance = Chance(overall.value)
        self._overall = overall

    @property
    def lag(self) -> int:
        return self.num_known - self.num_computed

    @property
    def guesses(self) -> list[int]:
        return self.twin.token_ids[self.num_known :]

    def compare(self) -> None:
        """Learns from the guesses how the text has gone on, and takes that over."""
        known, tokens = self.sequence.token_ids, self.twin.token_ids
        end = self.num_known
        for guess, token_id in zip(self.guesses, known[end:], strict=False):
            for chance in (self.chance, self._overall):
                chance.learn(guess == token_id)
            if guess != token_id:
                break
            end += 1
        tokens[end:] = known[end:]
        self.num_known = len(known)
        self.num_computed = min(self.num_computed, end)

    def start(self) -> Chunk:
        """The first step of a draft: what is known and not computed."""
        self.twin.read_as(self.sequence)
        return self.next()

    def next(self) -> Chunk:
        return Chunk.of(self.twin, self.num_computed, self.twin.num_tokens)

    def take(self, token_id: int) -> bool:
        """Takes the guess that next() led to; whether more are wanted. Nothing is guessed behind an answer's end."""
        self.num_computed = self.twin.num_tokens
        if token_id < 0 or token_id in self.twin.stop_ids:
            return False
        self.twin.append(token_id)
        return self.twin.num_tokens < self.num_known + self.wanted


class DraftModel:
    """The Drafter that asks another model."""

    probe_gain = 1.0  # a text may turn to what the model guesses well

    def __init__(
        self, draft: DraftBackend, num_blocks: ListLike[int], config: EngineConfig, clock: Callable[[], float]
    ) -> None:
        """Allocates num_blocks of each of its cache groups. Raises InsufficientMemoryError."""
        self._backend, self._max_model_len = draft
        groups = self._backend.cache_groups(config.block_size)
        self._backend.allocate_cache(num_blocks)
        self._blocks = BlockManager(
            groups,
            num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
        )
        self._finds_prefixes = config.enable_prefix_caching
        self._clock = clock
        self._costs = StepCosts(_foreseen)
        self._is_measured = False
        self._is_broken = False
        self._overall = Chance(FIRST_CHANCE)
        self._followers: dict[int, Follower] = {}  # by slot

    @property
    def pools(self) -> ListLike[BlockPool]:
        """The blocks of its cache groups."""
        return self._blocks.pools

    def chances(self, sequence: Sequence, limit: int) -> ListLike[float]:
        """The same for each token: how often this sequence's guesses were right, or all, while it has none."""
        follower, chance, lag = self._followers.get(sequence.slot), self._overall, sequence.num_tokens
        limit = min(limit, self._max_model_len - sequence.num_tokens, self._longest())
        if follower is not None:
            follower.compare()
            follower.wanted = max(min(follower.wanted, limit), 0)
            chance, lag = follower.chance, follower.lag
        if lag > MAX_LAG * (sequence.max_len - sequence.num_tokens):
            return ()
        found: list[float] = []
        while len(found) < limit and (not found or chance.value ** len(found) >= MIN_CHANCE):
            found.append(chance.value)
        return found

    def draft(self, wanted: ListLike[tuple[Sequence, int]]) -> list[ListLike[int]]:
        """What is guessed; for texts that lie behind nothing yet, but a part of them is computed."""
        followers = [self._follower(sequence, width) for sequence, width in wanted]
        active = [follower for follower in followers if follower is not None and follower.wanted]
        try:
            self._guess([f for f in active if f.lag <= MAX_FED])
            self._catch_up([f for f in active if f.lag > MAX_FED])
        except Exception as error:
            _log.error("the draft model failed: no more drafts are made", exc_info=error)
            self._is_broken = True
            return [()] * len(wanted)
        return [() if follower is None else follower.guesses for follower in followers]

    def seconds(self, num_sequences: int) -> float:
        """What a step of the draft model takes; nothing, so that it is tried, while that is not known."""
        return self._costs.seconds(num_sequences) if self._is_measured else 0.0

    def release(self, sequence: Sequence) -> None:
        """Frees what a sequence that leaves its slot holds."""
        if self._followers.pop(sequence.slot, None) is not None:
            self._blocks.free(sequence.slot)

    def forget(self) -> None:
        """Empties the prefix cache."""
        self._blocks.forget()

    def check(self, running: ListLike[Sequence]) -> None:
        """Asserts that only running sequences are followed and hold blocks."""
        assert all(follower.sequence.slot == slot for slot, follower in self._followers.items())
        assert {id(follower.sequence) for follower in self._followers.values()} <= set(map(id, running))
        held = {slot for slot, row in enumerate(self._blocks.tables.max(axis=(0, 2), initial=-1)) if row >= 0}
        assert held <= self._followers.keys(), "blocks are held for nobody"
        self._blocks.check()

    def _longest(self) -> int:
        if self._is_broken:
            return 0
        return self._max_model_len if self._is_measured else FIRST_LEN

    def _follower(self, sequence: Sequence, width: int) -> Follower | None:
        """The sequence's follower, which begins when the first guess is wanted."""
        slot = sequence.slot
        if width and slot not in self._followers:
            self._followers[slot] = follower = Follower(sequence, self._overall)
            if self._finds_prefixes:
                size = self._blocks.block_size
                hashes = sequence.block_hashes.first((sequence.num_tokens - 1) // size, sequence.token_ids)
                hashes = hashes[: self._blocks.match(hashes)]
                self._blocks.reuse(slot, hashes)
                follower.num_registered, follower.num_computed = len(hashes), len(hashes) * size
        found = self._followers.get(slot)
        if found is not None:
            found.wanted = width or found.wanted
        return found

    def _guess(self, followers: ListLike[Follower]) -> None:
        """Guesses for all side by side, one token of each per step."""
        builder = BatchBuilder(self._blocks)
        ready = [f for f in followers if self._blocks.grow(f.sequence.slot, f.num_computed, f.num_known + f.wanted)]
        chunks = [follower.start() for follower in ready]
        while chunks:
            token_ids = self._run(builder, chunks)
            ready = [f for f, token_id in zip(ready, token_ids, strict=True) if f.take(token_id)]
            chunks = [follower.next() for follower in ready]
        for follower in followers:
            follower.wanted = 0
            self._register(follower)

    def _run(self, builder: BatchBuilder, chunks: ListLike[Chunk]) -> list[int]:
        started = self._clock()
        result = self._computed(builder.build(chunks))
        self._costs.observe(sum(chunk.num_tokens for chunk in chunks), self._clock() - started)
        self._is_measured = True
        token_ids: list[int] = result.token_ids.tolist()
        return token_ids

    def _computed(self, batch: Batch) -> StepResult:
        result = self._backend.execute(batch).result()
        for error in result.failures.values():
            raise error
        return result

    def _catch_up(self, followers: ListLike[Follower]) -> None:
        """Computes a part of what is known, but not its last token, which leads to a guess."""
        chunks, budget = [], CATCH_UP_TOKENS
        for follower in followers:
            start = follower.num_computed
            end = start + min(follower.lag - 1, budget)
            if start < end and self._blocks.grow(follower.sequence.slot, start, end):
                chunks.append(Chunk.of(follower.twin, start, end))
                follower.num_computed = end
                budget -= end - start
        if chunks:
            self._computed(BatchBuilder(self._blocks).build(chunks))
        for follower in followers:
            self._register(follower)

    def _register(self, follower: Follower) -> None:
        """Makes the full blocks of known text findable."""
        first, last = follower.num_registered, min(follower.num_computed, follower.num_known) // self._blocks.block_size
        if self._finds_prefixes and first < last:
            sequence = follower.sequence
            hashes = sequence.block_hashes.first(last, sequence.token_ids)
            self._blocks.register(sequence.slot, first, hashes[first:])
            follower.num_registered = last


def _foreseen(num_rows: int) -> float:
    return float(FIXED_ROWS + num_rows)
