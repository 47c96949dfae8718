"""Who computes what in the next step, under the limits of tokens, slots and blocks.

Decodes go first, then prompts in chunks, then new sequences in the order of priority and arrival; the
share of prompts beside decodes is what `Pace` allows.
When blocks run out, the last in that order is preempted: it gives up slot and blocks, waits at its
place near the head, and later computes its prompt and output anew, or gets back what was saved of
them. Nothing is ever lost, and no one waits for ever: the first in order takes from everybody after
it and is itself never a victim, and Engine.add refuses what could not fit even alone. Knows
sequences and blocks, not backends.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from typing import Any

from tuili.config import EngineConfig
from tuili.engine.cache.block_manager import BlockManager
from tuili.engine.cache.cache_record import CacheRecord
from tuili.engine.pacing import Pace
from tuili.engine.sequence import Chunk, Sequence, Status
from tuili.engine.stats import Prefill
from tuili.engine.step_model import StepModel
from tuili.engine.swap import SwapSpace
from tuili.engine.turns import Turns
from tuili.types import CacheMiss

LONG_PREFILL_S = 1.0  # from which it is told how far a prompt has come
MAX_LOGPROB_ENTRIES = 1 << 22  # of a step's [rows, logprobs]: 32 MiB of ids and values


class Scheduler:
    """The waiting and the running sequences, both in order."""

    def __init__(
        self,
        blocks: BlockManager,
        config: EngineConfig,
        on_stop: Callable[[Sequence], None],
        park: Callable[[Sequence], None],
        swap: SwapSpace | None,
        turns: Turns,
    ) -> None:
        """on_stop is told of every sequence that is about to leave its slot; park finishes an idle one for now."""
        self._swap = swap
        self._turns = turns
        self.blocks = blocks
        self.costs = StepModel()  # learns from every step observed
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.max_tokens: int | None = None  # of a step, where the backend computes larger ones in parts
        self.num_preemptions = 0
        self.num_prefix_queries = 0  # tokens looked up in the prefix cache by new sequences
        self.num_prefix_hits = 0  # tokens of those that were found
        self._config = config
        self._on_stop = on_stop
        self._park = park
        self._record = CacheRecord()
        self._pace = Pace(config.max_slowdown, self.costs)
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence at its place."""
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_key)

    def schedule(self, *, is_ahead: bool = False, can_carry: bool = False) -> list[Chunk]:
        """The chunks of the next step, decodes first; their blocks are theirs and writable.

        is_ahead: steps are under way. Nobody is preempted then: where one finds no blocks there are no chunks, unless
        others have begun to part from a common block.
        can_carry: who waits for a token that one of those chooses may go on all the same.
        """
        preemptions = self.num_preemptions
        budget = self._config.max_num_batched_tokens
        chunks: list[Chunk] = []
        decodes: list[Sequence] = []
        prompts: list[Sequence] = []
        for sequence in self.running:
            count = sequence.num_remaining_tokens
            if count:  # else a beam that waits for others, or an answer whose last token is coming
                (decodes if count == 1 else prompts).append(sequence)
        num_prompts = len(prompts) + min(len(self.waiting), len(self._free_slots))
        turn = self._turns.take(decodes, has_prompts=num_prompts > 0, is_ahead=is_ahead, can_carry=can_carry)
        if turn is None:
            return []
        budget, stalled = self._continue(turn, budget, chunks, is_ahead)
        budget = self._beside(len(chunks), budget)
        # Answers whose step is under way wait for this one, too.
        self._pace.begin(len(chunks) or len(decodes) - len(turn), num_prompts)
        budget, is_stalled = self._continue(prompts, budget, chunks, is_ahead)
        if is_ahead and (stalled or is_stalled):
            self._turns.wait()
            return chunks if self.blocks.has_copies else []  # what is to be copied may be another's by the next step
        if not stalled and not is_stalled and self.num_preemptions == preemptions:
            self._admit(chunks, budget)
        return chunks

    def stats(self) -> dict[str, Any]:
        """What EngineStats says of sequences, blocks and the prefix cache; any thread may ask."""
        return {
            "num_running": len(self.running),
            "num_waiting": len(self.waiting),
            "num_blocks": tuple(pool.num_blocks for pool in self.blocks.pools),
            "num_free_blocks": tuple(pool.num_free for pool in self.blocks.pools),
            "num_preemptions": self.num_preemptions,
            "num_swaps": 0 if self._swap is None else self._swap.num_swaps,
            "num_prefix_queries": self.num_prefix_queries,
            "num_prefix_hits": self.num_prefix_hits,
            "max_step_tokens": self.max_tokens,
            "prefill": self.long_prefills(),
        }

    def long_prefills(self) -> dict[str, Prefill]:
        """How far they have come, by request; any thread may ask."""
        behind = [s for s in tuple(self.running) if s.num_computed_tokens < s.num_prompt_tokens]
        now = time.monotonic()
        return {
            s.request.request_id: Prefill(s.num_computed_tokens, s.num_cached_tokens or 0, now - s.scheduled_s)
            for s in behind
            if s.scheduled_s is not None and now - s.scheduled_s > LONG_PREFILL_S
        }

    def limit_steps(self, max_tokens: int | None) -> None:
        """Takes note of how many tokens the backend computes at a time; None is nothing new."""
        if max_tokens is not None:
            self.max_tokens = max_tokens

    def last_idle(self) -> Sequence | None:
        """The last running sequence that has nothing to compute for now."""
        return next((sequence for sequence in reversed(self.running) if not sequence.num_remaining_tokens), None)

    def observe(self, chunks: ListLike[Chunk], seconds: float) -> None:
        """Takes note of the time that a step of these chunks took."""
        prompts = [(chunk.start, chunk.num_tokens) for chunk in chunks if chunk.end - chunk.start > 1]
        num_prompt_tokens = sum(size for _, size in prompts)
        if self._swap is not None:
            self._swap.observe(chunks, seconds)
        self._pace.observe(sum(chunk.num_tokens for chunk in chunks) - num_prompt_tokens, prompts, seconds)

    def begin(self, chunks: ListLike[Chunk]) -> None:
        """Takes note that a step is under way. The next one comes after it: what it computes can be found already."""
        size = self.blocks.block_size
        for sequence, start, end, samples, _, is_carried, _ in chunks:
            sequence.num_computed_tokens = end
            if samples:
                sequence.num_awaited += 1
            if not is_carried and start // size < end // size:
                self._register(sequence, start, end)

    def commit(self, chunks: ListLike[Chunk]) -> None:
        """Takes note that a step is done, with what the one before chose known: a block may have become full by it."""
        for sequence, start, end, samples, _, is_carried, _ in chunks:
            if samples:
                sequence.num_awaited -= 1
            if is_carried and sequence.status is Status.RUNNING:
                self._register(sequence, start, end)

    def _register(self, sequence: Sequence, start: int, end: int) -> None:
        """Makes the blocks that tokens [start, end) fill findable."""
        size = self.blocks.block_size
        first, last = start // size, end // size
        if first < last and self._config.enable_prefix_caching:
            hashes = sequence.block_hashes.first(last, sequence.token_ids)
            self.blocks.register(sequence.slot, first, hashes[first:])
            for i in range(first, last):
                parent = hashes[i - 1] if i else sequence.block_hashes.root
                self._record.note(parent, sequence.token_ids[i * size : (i + 1) * size])

    def accept(self, sequence: Sequence, num_tokens: int) -> None:
        """Takes note that `num_tokens` tokens of a draft are the sequence's own, and computed; the rest is nobody's."""
        start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + num_tokens
        sequence.num_computed_tokens = end
        self._register(sequence, start, end)
        self.blocks.shrink(sequence.slot, end)

    def fork(self, sequence: Sequence, index: int) -> Sequence:
        """Splits answer `index` off a sequence; unless that runs and a slot is free, it waits and computes all anew."""
        twin = sequence.fork(index)
        if self._free_slots and sequence.status is Status.RUNNING:
            self._start(twin)
            self.blocks.fork(sequence.slot, twin.slot)
        else:
            twin.num_computed_tokens = 0
            self.add(twin)
        return twin

    def finish(self, sequence: Sequence) -> None:
        """Drops a waiting or running sequence and frees all it holds."""
        if sequence.status is Status.RUNNING:
            self._stop(sequence)
        elif sequence.status is Status.WAITING:
            _remove(self.waiting, sequence)
            self._drop_saved(sequence)
        sequence.status = Status.FINISHED

    def recompute_all(self) -> None:
        """Distrusts everything in the cache: running sequences wait to be computed anew."""
        for sequence in list(self.running):
            self._requeue(sequence)
        if self._swap is not None:
            self._swap.forget()
        self.forget()

    def forget(self) -> None:
        """Empties the prefix cache; sequences keep what they hold."""
        self.blocks.forget()
        self._record.forget()

    def check(self) -> None:
        """Asserts that lists, slots and blocks agree."""
        for sequences, status in ((self.waiting, Status.WAITING), (self.running, Status.RUNNING)):
            assert all(s.status is status for s in sequences)
            assert sorted(sequences, key=_key) == sequences, "sequences are out of order"
        assert not any(s.num_computed_tokens for s in self.waiting), "a waiting sequence claims computed tokens"
        assert not any(s.num_awaited for s in self.waiting), "a waiting sequence claims a token under way"
        slots = [s.slot for s in self.running] + self._free_slots
        assert sorted(slots) == list(range(self._config.max_num_seqs)), "a slot is lost or taken twice"
        assert all((self.blocks.tables[:, slot] < 0).all() for slot in self._free_slots), "a free slot holds blocks"
        self.blocks.check()
        assert not self.blocks.has_copies, "a copy of a block is left undone"
        if self._swap is not None:
            self._swap.check(self.waiting)

    def _beside(self, num_decodes: int, budget: int) -> int:
        """Prompt tokens beside so many decodes: what is left of the last part that these are computed in."""
        if self.max_tokens is None:
            return budget
        return min(budget, self.max_tokens - num_decodes % self.max_tokens)

    def _continue(
        self, sequences: ListLike[Sequence], budget: int, chunks: list[Chunk], is_ahead: bool
    ) -> tuple[int, bool]:
        """Adds chunks of running sequences; what is left of the budget, and whether one found no blocks."""
        stalled = False
        for sequence in sequences:
            if not budget or sequence.status is not Status.RUNNING:
                continue
            start = sequence.num_computed_tokens
            end = len(sequence.token_ids) + sequence.num_awaited
            if end - start > 1:
                end = start + self._share(sequence, start, budget, chunks)
                if end == start:
                    break
            chunk = Chunk.of(sequence, start, end)
            if self._make_room(chunk, chunks, is_ahead):
                chunks.append(chunk)
                budget -= end - start
            else:
                stalled = True
        return budget, stalled

    def _share(self, sequence: Sequence, start: int, budget: int, chunks: ListLike[Chunk]) -> int:
        """How many tokens of a prompt the step computes from `start` on; 0 when it is full."""
        limit = min(len(sequence.token_ids) - start, budget)
        if sequence.scores_prompt:
            limit = min(limit, self._max_scored(sequence, chunks))
        return self._pace.take(start, limit)

    def _max_scored(self, sequence: Sequence, chunks: ListLike[Chunk]) -> int:
        """Prompt tokens that can be scored in one step: result arrays are as wide as their widest row."""
        widest = max(sequence.num_prompt_logprobs, sequence.num_logprobs, *(c.sequence.num_logprobs for c in chunks))
        return max(MAX_LOGPROB_ENTRIES // max(widest, 1) - len(chunks), 1)

    def _make_room(self, chunk: Chunk, chunks: ListLike[Chunk], is_ahead: bool) -> bool:
        """Gets the chunk its blocks, from those after it in order if need be; False when it must wait a step."""
        sequence = chunk.sequence
        while not self.blocks.grow(sequence.slot, chunk.start, chunk.end):
            victim = None if is_ahead else self._victim(sequence, chunks)
            if victim is None:
                return False
            (self._preempt if victim.num_remaining_tokens else self._park)(victim)
            self.num_preemptions += 1
        return True

    def _victim(self, sequence: Sequence, chunks: ListLike[Chunk]) -> Sequence | None:
        """The last in order after `sequence` that has no chunk in this step."""
        busy = {chunk.sequence.slot for chunk in chunks}
        after = self.running[bisect_left(self.running, sequence.key, key=_key) + 1 :]
        return next((other for other in reversed(after) if other.slot not in busy), None)

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        """Starts waiting sequences, strictly in order, while their whole context finds room."""
        while budget and self.waiting and self._free_slots:
            sequence = self.waiting[0]
            hashes = self._reusable(sequence)
            start = len(hashes) * self.blocks.block_size
            if is_saved := self._num_saved(sequence) > start:
                start, hashes = self._num_saved(sequence), []
            if not self.blocks.fits(sequence.num_tokens, hashes):
                return
            size = self._share(sequence, start, budget, chunks)
            if not size:
                return
            del self.waiting[0]
            self._start(sequence)
            if sequence.scheduled_s is None:
                sequence.scheduled_s = time.monotonic()
                sequence.cache_miss = self._cache_miss(sequence, hashes)
            self.blocks.reuse(sequence.slot, hashes)
            sequence.num_computed_tokens = start
            if is_saved:
                self._restore(sequence)
            self._drop_saved(sequence)
            self._count_prefix(sequence)
            grown = self.blocks.grow(sequence.slot, start, start + size)
            assert grown, "a context that fits has no room"
            chunks.append(Chunk.of(sequence, start, start + size))
            budget -= size

    def _reusable(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the cached blocks to start from, all wholly before the last token, which must be computed."""
        if not self._config.enable_prefix_caching or sequence.scores_prompt:
            return []
        hashes = sequence.block_hashes.first((sequence.num_tokens - 1) // self.blocks.block_size, sequence.token_ids)
        return hashes[: self.blocks.match(hashes)]

    def _cache_miss(self, sequence: Sequence, found: ListLike[bytes]) -> CacheMiss:
        """Why a new sequence does not start behind more blocks than `found`."""
        if not self._config.enable_prefix_caching:
            return CacheMiss("off", 0)
        if sequence.scores_prompt:
            return CacheMiss("prompt_logprobs", 0)
        size = self.blocks.block_size
        start = len(found) * size
        if len(found) == (sequence.num_tokens - 1) // size:
            return CacheMiss("block_end", start)
        parent = found[-1] if found else sequence.block_hashes.root
        is_salted = bool(sequence.request.cache_salt)
        return self._record.explain(parent, sequence.token_ids[start : start + size], start, is_salted=is_salted)

    def _count_prefix(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is None and self._config.enable_prefix_caching:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.num_prefix_queries += sequence.num_tokens
            self.num_prefix_hits += sequence.num_computed_tokens

    def _start(self, sequence: Sequence) -> None:
        sequence.slot = self._free_slots.pop()
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_key)

    def _stop(self, sequence: Sequence) -> None:
        _remove(self.running, sequence)
        self._on_stop(sequence)
        self.blocks.free(sequence.slot)
        self._free_slots.append(sequence.slot)
        sequence.slot = -1

    def _preempt(self, sequence: Sequence) -> None:
        if self._swap is not None:
            self._swap.save(sequence, self.blocks)
        self._requeue(sequence)

    def _num_saved(self, sequence: Sequence) -> int:
        return 0 if self._swap is None else self._swap.num_tokens(sequence)

    def _restore(self, sequence: Sequence) -> None:
        assert self._swap is not None
        self._swap.restore(sequence, self.blocks)
        self._register(sequence, 0, sequence.num_computed_tokens)

    def _drop_saved(self, sequence: Sequence) -> None:
        if self._swap is not None:
            self._swap.drop(sequence)

    def _requeue(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.num_computed_tokens = sequence.num_awaited = 0
        self.add(sequence)


def _key(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.key


def _remove(sequences: list[Sequence], sequence: Sequence) -> None:
    i = bisect_left(sequences, sequence.key, key=_key)
    assert sequences[i] is sequence
    del sequences[i]
