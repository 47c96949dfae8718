"""A step in parts, where the whole finds no memory: batches are cut in two, results put together. Knows fields only.

What a part computes does not depend on the others, so that in deterministic mode nobody can tell that a step was cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Batch, Choices, Float32, Int32, SamplingArrays, StepHandle, StepResult, UInt32
from tuili.backends.torch.cache import is_out_of_memory
from tuili.errors import InsufficientMemoryError, TuiliError

_NO_COPIES: Int32 = np.empty((0, 3), np.int32)
_SPARSE = {
    "history": ("ids", "counts"),
    "bias": ("ids", "values"),
    "chain": ("kinds", "values"),
    "dry": ("ids", "values"),
}
_log = logging.getLogger(__name__)

Span = tuple[int, int]  # of tokens of a batch


class StepDivider:
    """Runs steps; one that finds no memory is cut in two, and again, and later ones are not made as large any more."""

    def __init__(
        self,
        run: Callable[[Batch], StepHandle],
        copy_blocks: Callable[[Int32], None],
        release: Callable[[], None],
        device: str,
    ) -> None:
        """run computes a batch or raises what is_out_of_memory knows; release gives back what nobody uses."""
        self._run, self._copy_blocks, self._release, self._device = run, copy_blocks, release, device
        self.max_tokens: int | None = None  # of a step, once one found no memory

    def execute(self, batch: Batch) -> StepHandle:
        """Raises InsufficientMemoryError where not even blocks can be copied."""
        before = self.max_tokens
        handle = self._attempt(batch)
        if handle is None:
            handle = self._in_parts(batch, before)
            if self.max_tokens != before:
                _log.warning(
                    "a step of %d tokens found no memory left on %s: from now on %d tokens are computed at a time",
                    *(len(batch.input_ids), self._device, self.max_tokens),
                )
        return handle

    def _attempt(self, batch: Batch) -> StepHandle | None:
        """None where it is too large."""
        num_tokens = len(batch.input_ids)
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            return None
        try:
            return self._run(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only here is the error's traceback gone, which kept what the step had made.
        self._release()
        self.max_tokens = max(1, num_tokens // 2)
        return None

    def _in_parts(self, batch: Batch, before: int | None) -> StepHandle:
        """A text too long for a step of one token says nothing about others: they may be as large as `before` then."""
        self._copy_one_by_one(batch.block_copies)
        pending: list[Span] = [(0, len(batch.input_ids))]
        failed: set[int] = set()
        parts: list[_Part] = []
        while pending:
            start, end = pending.pop()
            part = batch_part(batch, start, end)
            first = int(np.searchsorted(batch.query_start, start, side="right")) - 1
            handle = None if first in failed and len(part.slots) == 1 else self._attempt(part)
            if handle is not None:
                parts.append(_Part(first, part, handle.result()))
            elif first not in failed and (cut := _middle(batch.query_start, start, end)) is not None:
                pending += [(cut, end), (start, cut)]
            else:
                failed.add(first)
                self.max_tokens = before
                parts.append(_Part(first, part, self._failed(part)))
        return _Done(replace(joined_results(parts), max_tokens=self.max_tokens))

    def _copy_one_by_one(self, copies: Int32) -> None:
        try:
            for i in range(len(copies)):
                self._copy_blocks(copies[i : i + 1])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InsufficientMemoryError(f"not even a block can be copied on {self._device}: no memory left") from None

    def _failed(self, part: Batch) -> StepResult:
        error = InsufficientMemoryError(
            f"one token of a text of {part.seq_lens[0]} tokens found no memory left on {self._device}: lower "
            "gpu_memory_utilization or kv_cache_memory_bytes, or end what else uses the device"
        )
        num_rows = len(part.sample_rows)
        k = int(part.num_logprobs.max(initial=0))
        nan = np.full(num_rows, np.nan, np.float32)
        return StepResult(
            token_ids=np.full(num_rows, -1, np.int32),
            logprobs=nan,
            ranks=np.zeros(num_rows, np.int32),
            top_ids=np.full((num_rows, k), -1, np.int32),
            top_logprobs=np.full((num_rows, k), np.nan, np.float32),
            sampler_state=nan,
            failures={0: error},
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """first: its first sequence, in the whole batch."""

    first: int
    batch: Batch
    result: StepResult


class _Done:
    """The handle of a step that is over."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result


def _middle(query_start: Int32, start: int, end: int) -> int | None:
    """Where to cut [start, end): between two sequences if there are two, as near to the middle as may be."""
    between = query_start[(query_start > start) & (query_start < end)]
    middle = (start + end) // 2
    if len(between):
        return int(between[np.abs(between - middle).argmin()])
    return middle if end - start > 1 else None


def batch_part(batch: Batch, start: int, end: int) -> Batch:
    """The tokens [start, end) as a batch of their own, without block copies; a sequence may go on behind them."""
    first = int(np.searchsorted(batch.query_start, start, side="right")) - 1
    last = int(np.searchsorted(batch.query_start, end, side="left"))
    low, high = (int(row) for row in np.searchsorted(batch.sample_rows, (start, end)))
    own, rows, tokens = slice(first, last), slice(low, high), slice(start, end)
    ends = batch.query_start[first + 1 : last + 1]
    return replace(
        batch,
        input_ids=batch.input_ids[tokens],
        positions=batch.positions[..., tokens],
        query_start=np.clip(batch.query_start[first : last + 1], start, end) - np.int32(start),
        seq_lens=batch.seq_lens[own] - np.maximum(ends - np.int32(end), 0),
        block_tables=batch.block_tables[:, own],
        slot_mapping=batch.slot_mapping[:, tokens],
        block_copies=_NO_COPIES,
        slots=batch.slots[own],
        carry=batch.carry[own] & (ends <= end),
        sample_rows=batch.sample_rows[rows] - np.int32(start),
        targets=batch.targets[rows],
        num_logprobs=batch.num_logprobs[rows],
        sampling=sampling_part(batch.sampling, low, high),
        allow_mask=None if batch.allow_mask is None else batch.allow_mask[rows],
        adapter_ids=None if batch.adapter_ids is None else batch.adapter_ids[own],
        input_embeds=None if batch.input_embeds is None else batch.input_embeds[tokens],
        want_logits=None if batch.want_logits is None else batch.want_logits[rows],
    )


def sampling_part(sampling: SamplingArrays, low: int, high: int) -> SamplingArrays:
    """The rows [low, high)."""
    part: dict[str, NDArray[Any]] = {}
    for name, columns in _SPARSE.items():
        starts = getattr(sampling, f"{name}_start")
        entries = slice(starts[low], starts[high])
        part[f"{name}_start"] = starts[low : high + 1] - starts[low]
        part |= {f"{name}_{column}": getattr(sampling, f"{name}_{column}")[entries] for column in columns}
    dense = (f.name for f in fields(sampling) if f.name not in part)
    return SamplingArrays(**part, **{name: getattr(sampling, name)[low:high] for name in dense})


def sample_in_parts(
    sample: Callable[[Float32, SamplingArrays, UInt32 | None], Choices],
    release: Callable[[], None],
    logits: Float32,
    sampling: SamplingArrays,
    allow_mask: UInt32 | None,
) -> Choices:
    """Backend.sample with a half of the rows, and again, where all find no memory. Raises InsufficientMemoryError."""
    try:
        return sample(logits, sampling, allow_mask)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    release()
    count = len(logits)
    if count < 2:
        raise InsufficientMemoryError(f"choosing one of {logits.shape[-1]} tokens found no memory left")
    found = []
    for low, high in ((0, count // 2), (count // 2, count)):
        mask = None if allow_mask is None else allow_mask[low:high]
        found.append(sample_in_parts(sample, release, logits[low:high], sampling_part(sampling, low, high), mask))
    return Choices(*map(np.concatenate, zip(*found, strict=True)))


def joined_results(parts: ListLike[_Part]) -> StepResult:
    """What the whole batch would have found; a sequence fails where one of its parts did."""
    results = [part.result for part in parts]
    k = max(result.top_ids.shape[1] for result in results)
    failures: dict[int, TuiliError] = {}
    logit_rows, num_rows = [], 0
    for part in parts:
        for s, error in part.result.failures.items():
            failures.setdefault(part.first + s, error)
        if part.result.logit_rows is not None:
            logit_rows.append(part.result.logit_rows + num_rows)
        num_rows += len(part.batch.sample_rows)
    return StepResult(
        token_ids=np.concatenate([result.token_ids for result in results]),
        logprobs=np.concatenate([result.logprobs for result in results]),
        ranks=np.concatenate([result.ranks for result in results]),
        top_ids=np.concatenate([_widened(result.top_ids, k, -1) for result in results]),
        top_logprobs=np.concatenate([_widened(result.top_logprobs, k, np.nan) for result in results]),
        sampler_state=np.concatenate([result.sampler_state for result in results]),
        logits=_joined([result.logits for result in results]),
        logit_rows=np.concatenate(logit_rows) if logit_rows else None,
        hidden=_joined([result.hidden for result in results]),
        failures=failures,
    )


def _widened(array: NDArray[Any], k: int, filler: float) -> NDArray[Any]:
    return np.pad(array, ((0, 0), (0, k - array.shape[1])), constant_values=filler)


def _joined(arrays: ListLike[NDArray[Any] | None]) -> NDArray[Any] | None:
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if found else None
