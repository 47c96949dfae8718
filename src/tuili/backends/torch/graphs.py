"""Decode steps as captured graphs: hundreds of launches become one. Knows a batch's fields; no layers, no sampling.

A graph is captured when a batch of its size is first met, and computes rows up to that size: the last of them fill it
up and belong to nobody. All it reads from the host lies at fixed addresses, which every step writes anew.
"""

from __future__ import annotations

import logging
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuili.backend import Batch
from tuili.backends.torch.cache import is_out_of_memory
from tuili.backends.torch.devices import release_memory
from tuili.backends.torch.one_row import OneRow, step_seconds
from tuili.backends.torch.ops import AttentionPlan
from tuili.backends.torch.shard import Ranks
from tuili.backends.torch.step import Array, StepInputs, Uploader, carry_slots
from tuili.backends.torch_sizes.footprint import MAX_GRAPH_LOGIT_BYTES

NUM_ROWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
CONTEXT_LENS = (2048, 8192, 32768, 131072, 524288)  # that attention reckons with; the last is as long as it must be

Work = Callable[[], None]
Capture = Callable[[Work], Work]
_CAPTURING = threading.Lock()
_log = logging.getLogger(__name__)


class CudaCapture:
    """Makes CUDA graphs that share one pool of memory: one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._made: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """What runs `work` again on the same memory. It is run once on the way: kernels compile, libraries settle."""
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:  # work that fails halfway still reads what `before` is about to be given anew
            before.wait_stream(self._stream)
        if not self._made:  # a pool whose graphs are all gone is closed to new ones as long as any of it is in use
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use CUDA meanwhile, but only one may capture.
            with (
                _CAPTURING,
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                work()
        finally:
            torch.cuda.set_stream(before)  # which a capture that fails leaves another
        self._made.add(graph)
        replay: Work = graph.replay
        return replay


def repeat(work: Work) -> Work:
    """The slow twin of a capture, on any device: does the same work on the same memory."""
    work()
    return work


class GraphLimits(NamedTuple):
    vocab_size: int
    max_model_len: int
    ranks: Ranks | None = None  # those who share the layers capture at the same time, and within it wait for each other


class Outcome(IntEnum):
    """Of a capture, the worst last."""

    MADE = 0
    NO_MEMORY = 1
    FAILED = 2


class Decoded(NamedTuple):
    """On the device until the next step: what n rows found."""

    logits: Tensor  # float32 [n, vocab]
    token_ids: Tensor  # int32 [n] of the largest logits, -1 where there is no finite maximum
    carried: Tensor  # int32 [n] what the rows' slots held before
    step: StepInputs  # with more rows


@dataclass(frozen=True, slots=True)
class Graph:
    uploader: Uploader
    step: StepInputs
    replay: Work


@dataclass(frozen=True, slots=True)
class GraphOutputs:
    """What every graph writes to."""

    logits: Tensor  # float32 [rows, vocab]
    token_ids: Tensor  # int32 [rows]
    previous: Tensor  # int32 [rows] what last_tokens held before
    last_tokens: Tensor  # int32 [slots + 1] by slot; the last is that of rows that belong to nobody


class DecodeGraphs:
    """The graphs of one model and cache, by numbers of rows and lengths of context."""

    def __init__(
        self,
        decode: Callable[[StepInputs], Tensor],
        last_tokens: Tensor,
        limits: GraphLimits,
        capture: Capture,
        one_row: OneRow | None = None,
    ) -> None:
        """`decode` computes the logits [rows, vocab] of a step in which every row is one sequence's only token.

        one_row: decides how those of one row are computed.
        """
        self._one_row = one_row
        self._decode = decode
        self._capture: Capture | None = capture  # None: one has failed
        self._last_tokens = last_tokens
        vocab_size, max_model_len, self._ranks = limits
        most_rows = max(1, MAX_GRAPH_LOGIT_BYTES // (4 * vocab_size))
        self._num_rows = [n for n in NUM_ROWS if n <= most_rows]
        self._context_lens = [n for n in CONTEXT_LENS if n < max_model_len] + [max_model_len]
        self._vocab_size = vocab_size
        self._outputs: GraphOutputs | None = None
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._too_large: list[tuple[int, int]] = []  # sizes that there was no memory for
        self._has_run = False  # the work of the graph that is being captured, once
        self.num_captures = 0  # that were tried

    def __len__(self) -> int:
        return len(self._graphs)

    def forget(self) -> None:
        """The cache is about to lie elsewhere."""
        self._graphs.clear()
        self._too_large.clear()

    def run(self, batch: Batch, block_size: int) -> Decoded | None:
        """Runs a decode step; None, and nothing done, for one that is no graph's."""
        count = len(batch.seq_lens)
        if count > self._num_rows[-1] or not _is_decode(batch):
            return None
        rows = self._num_rows[bisect_left(self._num_rows, count)]
        context = self._context_lens[bisect_left(self._context_lens, int(batch.seq_lens.max()))]
        num_blocks = -(-context // block_size)
        graph = self._graphs.get((rows, context)) or self._captured(batch, rows, context, num_blocks)
        if graph is None:
            return None
        graph.uploader.refresh(decode_arrays(batch, count, rows, num_blocks, len(self._last_tokens) - 1))
        return self._replayed(graph, batch)

    def _replayed(self, graph: Graph, batch: Batch) -> Decoded:
        count = len(batch.seq_lens)
        graph.replay()
        assert self._outputs is not None
        outputs = self._outputs
        return Decoded(outputs.logits[:count], outputs.token_ids[:count], outputs.previous[:count], graph.step)

    def undo(self, decoded: Decoded) -> None:
        """Forgets the tokens that the step run last has chosen, so that it can be computed again."""
        assert self._outputs is not None
        slots = decoded.step.kept_slots.long()
        self._last_tokens.index_copy_(0, slots, self._outputs.previous[: len(slots)])

    @property
    def max_rows(self) -> int:
        """Of the largest one."""
        return self._num_rows[-1]

    def _captured(self, batch: Batch, rows: int, context: int, num_blocks: int) -> Graph | None:
        """A new graph; None where there is no memory for one of this size, and once one could not be captured.

        Ranks who share the layers all have one, or none. Raises what happens before the others can be told.
        """
        if self._capture is None or any(rows >= n and context >= length for n, length in self._too_large):
            return None
        self.num_captures += 1
        own, graph = self._tried(self._capture, batch, rows, context, num_blocks)
        outcome = self._agreed(own)
        if outcome is Outcome.MADE and graph is not None:
            self._graphs[rows, context] = graph
            return graph
        if outcome is Outcome.NO_MEMORY:
            self._too_large.append((rows, context))
        else:
            self._capture = None
        del graph
        release_memory(self._last_tokens.device)  # only now is the error gone, which kept what had been made
        return None

    def _tried(
        self, capture: Capture, batch: Batch, rows: int, context: int, num_blocks: int
    ) -> tuple[Outcome, Graph | None]:
        """On this rank; what went wrong is told."""
        self._has_run = False
        try:
            return Outcome.MADE, self._new_graph(capture, batch, rows, context, num_blocks)
        except Exception as error:
            if self._ranks is not None and not self._has_run:
                raise  # others wait for this one in the middle of it
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                message = "no memory left for a CUDA graph of %d sequences in up to %d tokens: such steps are slower"
                _log.warning(message, rows, context)
                return Outcome.NO_MEMORY, None
            _log.warning("no CUDA graph for %d sequences: steps without one are slower", rows, exc_info=error)
            return Outcome.FAILED, None

    def _agreed(self, own: Outcome) -> Outcome:
        """The worst of any rank's."""
        if self._ranks is None:
            return own
        outcome = torch.tensor([own], dtype=torch.int32, device=self._last_tokens.device)
        return Outcome(max(int(other) for other in self._ranks.gather(outcome)))

    def _new_graph(self, capture: Capture, batch: Batch, rows: int, context: int, num_blocks: int) -> Graph:
        """Tried with rows that all belong to nobody."""
        outputs = self._outputs = self._outputs or self._made_outputs()
        uploader = Uploader(self._last_tokens.device, is_fixed=True)
        arrays = decode_arrays(batch, 0, rows, num_blocks, len(self._last_tokens) - 1)
        step = _step(uploader.upload(arrays), rows, context)

        def work() -> None:
            self._work(step, outputs, rows)
            self._has_run = True

        if rows > 1 or self._one_row is None:
            return Graph(uploader, step, capture(work))
        clock = step_seconds(self._last_tokens.device)
        return Graph(uploader, step, self._one_row.fastest(lambda: capture(work), clock))

    def _made_outputs(self) -> GraphOutputs:
        device, rows = self._last_tokens.device, self._num_rows[-1]
        return GraphOutputs(
            torch.empty((rows, self._vocab_size), dtype=torch.float32, device=device),
            torch.empty(rows, dtype=torch.int32, device=device),
            torch.empty(rows, dtype=torch.int32, device=device),
            self._last_tokens,
        )

    def _work(self, step: StepInputs, outputs: GraphOutputs, rows: int) -> None:
        """Waits for nothing and allocates nothing that outlives it."""
        self._choose(self._decode(step), step, outputs, rows)

    def _choose(self, found: Tensor, step: StepInputs, outputs: GraphOutputs, rows: int) -> None:
        """Keeps the logits found, and of each row the largest one's token."""
        logits, token_ids = outputs.logits[:rows], outputs.token_ids[:rows]
        logits.copy_(found)
        top, best = logits.max(-1)
        token_ids.copy_(best.masked_fill(~top.isfinite(), -1))
        slots = step.kept_slots.long()
        outputs.previous[:rows].copy_(outputs.last_tokens.index_select(0, slots))
        outputs.last_tokens.index_copy_(0, slots, token_ids.clamp(min=0))


def _is_decode(batch: Batch) -> bool:
    """Whether every sequence has one token, from whose logits one more is chosen."""
    count = len(batch.seq_lens)
    if not len(batch.input_ids) == len(batch.sample_rows) == count or len(batch.block_copies):
        return False
    is_plain = batch.want_logits is None and not batch.want_hidden and bool((batch.targets < 0).all())
    return is_plain and bool((batch.sample_rows == np.arange(count)).all())


def decode_arrays(batch: Batch, count: int, rows: int, num_blocks: int, spare_slot: int) -> dict[str, Array]:
    """The first `count` sequences of a decode step and as many of nobody's as make `rows`.

    Those write to no slot, see nothing, and leave their token at spare_slot. Tables are num_blocks wide.
    """
    tables = batch.block_tables[:, :count, :num_blocks]
    filled = np.full((len(tables), rows, num_blocks), -1, np.int32)
    filled[:, :count, : tables.shape[2]] = tables

    def padded(array: Array, value: int) -> Array:
        whole = np.full((*array.shape[:-1], rows), value, np.int32)
        whole[..., :count] = array[..., :count]
        return whole

    return {
        "input_ids": padded(batch.input_ids, 0),
        "positions": padded(batch.positions, 0),
        "carry_slots": padded(carry_slots(batch), -1),
        "slot_mapping": padded(batch.slot_mapping, -1),
        "query_start": np.arange(rows + 1, dtype=np.int32),
        "seq_lens": padded(batch.seq_lens, 0),
        "block_tables": filled,
        "rows": np.arange(rows, dtype=np.int32),
        "targets": padded(batch.targets, -1),
        "num_logprobs": padded(batch.num_logprobs, -1),
        "kept_slots": padded(batch.slots, spare_slot),
    }


def _step(sent: dict[str, Tensor], rows: int, context: int) -> StepInputs:
    tables = sent["block_tables"]
    return StepInputs(
        input_ids=sent["input_ids"],
        positions=sent["positions"],
        carry_slots=sent["carry_slots"],
        slot_mapping=sent["slot_mapping"],
        plans=tuple(AttentionPlan(sent["query_start"], sent["seq_lens"], table, 1, context, rows) for table in tables),
        block_copies=tables.new_empty((0, 3)),
        sample_rows=sent["rows"],
        targets=sent["targets"],
        num_logprobs=sent["num_logprobs"],
        logit_rows=None,
        kept_rows=sent["rows"],
        kept_slots=sent["kept_slots"],
    )
