"""The engine: requests in, token deltas out, one step at a time.

schedule -> build -> execute -> commit -> deliver. Where the backend allows it, steps are handed over before the one
under way is done: they assume that every answer goes on; what they compute for one that ended is left aside. Knows
token ids only; single-threaded. Every answer of every request ends in exactly one terminal delta, whatever happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import asdict
from operator import eq

from tuili.backend import Backend, StepHandle, StepResult
from tuili.config import EngineConfig
from tuili.engine.admission import check_request
from tuili.engine.batch import BatchBuilder
from tuili.engine.beam_group import BeamGroup
from tuili.engine.cache.block_manager import BlockManager
from tuili.engine.cache.cache_plan import plan_cache
from tuili.engine.cache.cache_size import CacheSize, cache_parts
from tuili.engine.cache.prefix_cache import HashChain, chain_root
from tuili.engine.deltas import damage, ending, endings, progress
from tuili.engine.drafts.draft_model import DraftBackend, DraftModel
from tuili.engine.drafts.speculative import Drafter, speculation
from tuili.engine.launch import Launch, Launches, Refusal
from tuili.engine.outbox import Outbox
from tuili.engine.processors import choose_processed
from tuili.engine.sampling.logprobs import token_logprobs
from tuili.engine.scheduler import Scheduler
from tuili.engine.sequence import Chunk, Sequence, Sink, Status
from tuili.engine.stats import Counts, EngineStats
from tuili.engine.swap import open_swap
from tuili.engine.turns import Turns, max_steps
from tuili.errors import DeviceFailureError, EngineUnavailableError, InvalidRequestError, TuiliError
from tuili.types import FinishReason, TokenRequest

_log = logging.getLogger(__name__)


class Engine:
    """Runs requests on a backend. The backend stays open: whoever loaded it closes it."""

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        *,
        draft: DraftBackend | None = None,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Sizes and allocates the cache. Raises UnsupportedModelError or InsufficientMemoryError.

        draft is the model for method "draft_model"; its cache is a part of the whole. drafter replaces the one
        config.speculative asks for; clock gives the seconds by which steps are timed.
        """
        groups = backend.cache_groups(config.block_size)
        draft_groups = () if draft is None else draft.backend.cache_groups(config.block_size)
        counts = plan_cache((*groups, *draft_groups), config)
        num_blocks, num_draft_blocks = counts[: len(groups)], counts[len(groups) :]
        backend.allocate_cache(num_blocks)
        self.config = config
        self.blocks = BlockManager(
            groups,
            num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
        )
        self._backend = backend
        parts = cache_parts(backend, groups, self.blocks.pools)
        if draft is not None and drafter is None:
            drafter = DraftModel(draft, num_draft_blocks, config, clock)
            parts += cache_parts(draft.backend, draft_groups, drafter.pools)
        self.cache_size = CacheSize(parts, config)
        swap = open_swap(backend, groups, config)
        num_stages = 1 if config.speculative is not None else backend.num_stages  # drafts need the tokens before them
        self._scheduler = Scheduler(self.blocks, config, self._release, self._park, swap, Turns(num_stages))
        self._speculation = speculation(config, self.blocks, drafter, clock, self._scheduler.costs.decode_units)
        self._batches = BatchBuilder(self.blocks, num_stages)
        self._clock = clock
        self._live: dict[str, list[Sequence]] = {}  # unfinished sequences of each request
        self._groups: dict[str, BeamGroup] = {}  # of the requests that search beams
        self._outbox = Outbox(self._silence)
        self._under_way = Launches()
        self._landed = 0.0  # when the last result came
        self._closed = False
        self._num_arrivals = 0
        self._counts = Counts()

    def check_request(self, request: TokenRequest) -> int:
        """Raises what add() would raise for the request's own sake; any thread may ask. Returns its length limit."""
        return check_request(
            request,
            vocab_size=self._backend.vocab_size,
            max_model_len=self.config.max_model_len,
            capacity=self.blocks.capacity,
        )

    def add(self, request: TokenRequest, sink: Sink) -> None:
        """Queues a request, or what its `resume` leaves to do; its deltas go to `sink`, which must not block.

        Raises InvalidRequestError, ContextLengthError (with the numbers) or EngineUnavailableError.
        """
        if self._closed:
            raise EngineUnavailableError("the engine is closed")
        if request.request_id in self._live:
            raise InvalidRequestError(f"request_id {request.request_id!r} is already in use", param="request_id")
        root = chain_root(self.config.kv_cache_dtype, request.cache_salt)
        sequence = Sequence(
            request,
            sink,
            arrival=self._num_arrivals,
            max_len=self.check_request(request),
            block_hashes=HashChain(self.config.block_size, root),
            vocab_size=self._backend.vocab_size,
        )
        if request.beam_search is not None:
            assert sequence.beams is not None
            self._groups[request.request_id] = BeamGroup(sequence, sequence.beams, request.beam_search.temperature)
        self._num_arrivals += 1
        self._live[request.request_id] = sequence.answers()
        for answer in self._live[request.request_id]:
            self._scheduler.add(answer)

    def abort(self, request_id: str, index: int | None = None, sink: Sink | None = None) -> None:
        """Ends a request, or one answer of it, wherever it is; what is not there any more is left alone.

        With `sink`, only if the request is that sink's: a refused request may bear the id of another's.
        """
        for sequence in list(self._live.get(request_id, ())):
            if sink is not None and sequence.sink is not sink:
                continue
            for i in list(sequence.indexes):
                if index is None or i == index:
                    self._end(sequence, i, "abort")
        self._outbox.deliver()

    def reset_prefix_cache(self) -> None:
        """Later requests reuse nothing computed so far; sequences under way keep what they hold."""
        self._scheduler.forget()
        if self._speculation is not None:
            self._speculation.forget()

    def step(self) -> bool:
        """Computes one step and delivers what came of it; False when nothing is left to do.

        A backend that fails ends the sequences of that step with an error, and no others. Raises DeviceFailureError
        when it can compute nothing any more: then the engine is of use to close() only.
        """
        if not self._under_way:
            self._launch(self._clock(), self._schedule())
        assert self._under_way or not self._live, "sequences wait, but none can run"
        if self._under_way:
            self._go_ahead()
            self._land(self._under_way.popleft())
        return self.has_work()

    def _go_ahead(self) -> None:
        """Hands over as many steps as the backend can use before the first of them is done."""
        most = 1 if self._speculation is not None else max_steps(self._backend)
        while len(self._under_way) < most and self._under_way.can_go_on:
            chunks = self._scheduler.schedule(is_ahead=True, can_carry=self._under_way.can_carry)
            if not self._launch(self._clock(), chunks):
                return

    def _schedule(self) -> list[Chunk]:
        chunks = self._scheduler.schedule()
        while not chunks and (idle := self._scheduler.last_idle()) is not None:
            self._park(idle)
            chunks = self._scheduler.schedule()
        return chunks if self._speculation is None else self._speculation.extend(chunks)

    def _launch(self, started: float, chunks: list[Chunk]) -> bool:
        """Hands a step to the backend, if there is one; what that raises is told when the step lands."""
        if chunks:
            self._counts.num_steps += 1
            handle: StepHandle
            try:
                handle = self._backend.execute(self._batches.build(chunks))
            except Exception as error:
                handle = Refusal(error)
            else:
                self._scheduler.begin(chunks)
            self._under_way.append(Launch(chunks, handle, started))
        return bool(chunks)

    def _land(self, launch: Launch) -> None:
        """Waits for a step and delivers what came of it."""
        chunks = launch.chunks
        try:
            result = launch.handle.result()
            self._scheduler.commit(chunks)
            result, failures = choose_processed(chunks, result, self._backend)
        except Exception as error:
            self._fail(chunks, error)
            self._outbox.deliver()
            return
        self._commit(chunks, result, failures)
        self._outbox.deliver()
        now = self._clock()
        seconds = now - max(launch.started, self._landed)  # before that the backend was busy with another
        self._landed = now
        if self._speculation is not None:
            seconds -= self._speculation.drafting_s
            self._speculation.observe(seconds)
        self._scheduler.observe(chunks, seconds)

    def has_work(self) -> bool:
        return bool(self._live)

    def stats(self) -> EngineStats:
        return EngineStats(**self._scheduler.stats(), **asdict(self._counts))

    def check(self) -> None:
        """Asserts that every sequence, slot and block is accounted for."""
        queued = self._scheduler.waiting + self._scheduler.running
        assert set(map(id, queued)) == set(map(id, self._sequences())), "a sequence is lost"
        self._scheduler.check()
        if self._speculation is not None:
            self._speculation.check(self._scheduler.running)

    def close(self, error: TuiliError | None = None) -> None:
        """Ends every request with an error delta and takes no more."""
        self._closed = True
        error = error or EngineUnavailableError("the engine is closed")
        for sequences in self._live.values():
            for sequence in sequences[:1] if sequences[0].beams else sequences:
                self._outbox.put_all(sequence.sink, endings(sequence, "error", error))
        self._outbox.deliver()  # before anything that a broken state could keep from happening
        for sequence in self._sequences():
            self._drop(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._batches.forget(sequence)
        if self._speculation is not None:
            self._speculation.release(sequence)

    def _sequences(self) -> list[Sequence]:
        return [sequence for sequences in self._live.values() for sequence in sequences]

    def _park(self, idle: Sequence) -> None:
        request_id = idle.request.request_id
        self._groups[request_id].park(idle, self._scheduler, self._live[request_id])

    def _commit(self, chunks: ListLike[Chunk], result: StepResult, failures: Mapping[int, TuiliError]) -> None:
        row, token_ids = 0, result.token_ids.tolist()
        self._scheduler.limit_steps(result.max_tokens)
        self._end_failed(chunks, result.failures)
        for chunk in chunks:
            answers = self._take(chunk, result, row)
            row += len(chunk.scored)
            for index in chunk.samples:
                end = row + 1 + len(chunk.draft)
                answer = answers.get(index)
                if answer is None:  # ended since the step was handed over
                    pass
                elif answer.beams is not None:
                    self._groups[answer.request.request_id].tell(answer, result, row)
                elif not self._choose(answer, chunk.draft, token_ids[row:end], result, row):
                    self._end_all(answer, failures.get(row) or damage())
                row = end
        for group in [group for group in self._groups.values() if group.is_ready]:
            self._advance(group)
        if result.failures:
            self._recompute_all()  # what those were to write can be found already

    def _take(self, chunk: Chunk, result: StepResult, row: int) -> dict[int, Sequence]:
        """Takes note of a chunk's tokens; by index, the answers that choose one now, each a sequence of its own.

        The chunk's rows begin at `row`.
        """
        sequence = chunk.sequence
        if sequence.status is Status.FINISHED:
            return {}
        self._counts.num_computed_tokens += chunk.num_tokens
        if sequence.prompt_logprobs is not None:
            rows, count = range(row, row + len(chunk.scored)), sequence.num_prompt_logprobs
            sequence.prompt_logprobs += [token_logprobs(result, r, count) for r in rows]
        if len(chunk.samples) < 2:
            return dict.fromkeys(chunk.samples, sequence)
        twins = [self._scheduler.fork(sequence, index) for index in sequence.indexes[1:]]
        self._live[sequence.request.request_id] += twins
        return {answer.indexes[0]: answer for answer in (sequence, *twins)}

    def _advance(self, group: BeamGroup) -> None:
        """Every beam of a group has told its candidates: the best go on, or the search is over."""
        first = group.sequences[0]
        if group.is_void:
            return self._end_all(first, damage())
        try:
            if group.advance(self._scheduler, self._live[first.request.request_id]):
                return None
        except Exception as error:  # its own affair: the others go on
            _log.error("a beam search failed", exc_info=error)
            return self._end_all(first, TuiliError("the beam search failed"))
        results = group.results()
        self._counts.num_output_tokens += sum(len(delta.token_ids) for delta in results)
        self._outbox.put_all(first.sink, results)
        return self._drop_all(first.request.request_id)

    def _choose(
        self, sequence: Sequence, draft: tuple[int, ...], chosen: list[int], result: StepResult, row: int
    ) -> bool:
        """Takes what the rows from `row` on chose: of a draft's, those up to the first it did not foresee.

        False when the first after them had nothing to choose.
        """
        reason: FinishReason | None = None
        taken: list[int] = []
        for token_id, foreseen in zip(chosen, (*draft, None), strict=True):
            if token_id < 0:
                break
            taken.append(token_id)
            sequence.sampler_state = float(result.sampler_state[row])
            reason = sequence.append(token_id)
            if reason is not None or token_id != foreseen:
                break
        if draft:
            self._accept(sequence, draft, taken)
        if taken:
            self._tell(sequence, tuple(taken), reason, result, row)
        return token_id >= 0

    def _accept(self, sequence: Sequence, draft: tuple[int, ...], taken: list[int]) -> None:
        self._scheduler.accept(sequence, max(len(taken) - 1, 0))
        self._counts.num_draft_tokens += len(draft)
        self._counts.num_accepted_tokens += sum(map(eq, draft, taken))

    def _tell(
        self, sequence: Sequence, taken: tuple[int, ...], reason: FinishReason | None, result: StepResult, row: int
    ) -> None:
        self._counts.num_output_tokens += len(taken)
        delta = progress(sequence, taken, reason, result, row)
        if reason is not None:
            self._drop(sequence)
        self._outbox.put(sequence.sink, delta)

    def _fail(self, chunks: ListLike[Chunk], error: Exception) -> None:
        """A step failed: its sequences end, the others start over, as the cache cannot be trusted any more.

        Raises the error when there will be no other step.
        """
        if isinstance(error, DeviceFailureError):
            raise error
        _log.error("a step of %d sequences failed", len(chunks), exc_info=error)
        if not isinstance(error, TuiliError) or isinstance(error, InvalidRequestError):  # no caller made the batch
            error = TuiliError("the backend failed while computing a step")
        self._end_failed(chunks, dict.fromkeys(range(len(chunks)), error))
        self._recompute_all()

    def _end_failed(self, chunks: ListLike[Chunk], failures: Mapping[int, TuiliError]) -> None:
        for s, error in failures.items():
            if chunks[s].sequence.status is not Status.FINISHED:
                self._end_all(chunks[s].sequence, error)

    def _recompute_all(self) -> None:
        self._under_way.clear()  # they read what a step before was to write
        self._scheduler.recompute_all()

    def _end_all(self, sequence: Sequence, error: TuiliError) -> None:
        for index in list(sequence.indexes):
            self._end(sequence, index, "error", error)

    def _end(self, sequence: Sequence, index: int, reason: FinishReason, error: TuiliError | None = None) -> None:
        """Ends one answer early; of beams, all."""
        if sequence.beams is not None:
            if sequence.request.request_id in self._live:
                self._outbox.put_all(sequence.sink, endings(sequence, reason, error))
                self._drop_all(sequence.request.request_id)
            return
        delta = ending(sequence, index, reason, error)
        if len(sequence.indexes) == 1:
            self._drop(sequence)
        else:
            sequence.indexes.remove(index)
        self._outbox.put(sequence.sink, delta)

    def _drop_all(self, request_id: str) -> None:
        for sequence in list(self._live[request_id]):
            self._drop(sequence)

    def _drop(self, sequence: Sequence) -> None:
        self._scheduler.finish(sequence)
        request_id = sequence.request.request_id
        self._live[request_id].remove(sequence)
        if not self._live[request_id]:
            del self._live[request_id]
            self._groups.pop(request_id, None)
        if not self._live:
            self._under_way.clear()  # they compute for nobody

    def _silence(self, request_id: str) -> None:
        """Drops a request whose sink is broken."""
        if request_id in self._live:
            self._drop_all(request_id)
