"""The Backend of the C++ runtime: a whole step is one call, made without the interpreter's lock. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import numpy as np

from tuili.backend import (
    Backend,
    BackendOptions,
    Batch,
    CacheGroup,
    Choices,
    Float32,
    Int32,
    SamplingArrays,
    StepHandle,
    StepResult,
    UInt32,
    empty_result,
    refuse_unread,
    window_groups,
)
from tuili.backends.cpu import _native
from tuili.backends.cpu.native_model import LayerGroups, load_model
from tuili.config import BLOCK_SIZES, KV_CACHE_DTYPES, KvCacheDtype
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, InvalidRequestError
from tuili.machine import available_memory
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor


def load(spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> Backend:
    """Repacks every weight, in its own format, into the layout of the kernels; returns a backend without a cache.

    Raises UnsupportedModelError naming what the backend lacks, ModelFileError for weights that are not the spec's,
    InvalidRequestError for an option out of range, InsufficientMemoryError.
    """
    groups = LayerGroups.of(spec)
    return CpuBackend(spec, load_model(spec, weights, options, groups), groups, options)


class CpuBackend:
    """A loaded model. One thread at a time; several Python threads may wait for it, as a step holds no lock."""

    is_asynchronous = False
    num_stages = 1

    def __init__(self, spec: ModelSpec, model: _native.Model, groups: LayerGroups, options: BackendOptions) -> None:
        self._spec = spec
        self._open_model: _native.Model | None = model
        self._groups = groups
        self._block_size = 0
        self._cache_format: KvCacheDtype = KV_CACHE_DTYPES[options.kv_cache_dtype]
        self._kept: _BoundStep | None = None

    @property
    def vocab_size(self) -> int:
        return self._spec.vocab_size

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._model.isa

    @property
    def num_threads(self) -> int:
        return self._model.num_threads

    @property
    def weight_bytes(self) -> int:
        """Memory that the packed weights take."""
        return self._model.weight_bytes

    @property
    def _model(self) -> _native.Model:
        if self._open_model is None:
            raise EngineUnavailableError("the cpu backend is closed")
        return self._open_model

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """One group per window; also fixes the block size of the next allocate_cache."""
        if block_size not in BLOCK_SIZES:
            raise InvalidRequestError(f"block_size must be one of {BLOCK_SIZES}, got {block_size}", param="block_size")
        self._block_size = block_size
        windows = self._groups.windows
        sizes = [self._model.cache_block_bytes(self._cache_format, g, block_size) for g in range(len(windows))]
        return window_groups(windows, sizes, block_size)

    def allocate_cache(self, num_blocks: ListLike[int]) -> None:
        """Empty blocks for every group; what was cached before is gone. Raises InsufficientMemoryError."""
        assert self._block_size > 0, "cache_groups() states the block size before allocate_cache()"
        assert len(num_blocks) == len(self._groups.windows)
        assert all(n >= 0 for n in num_blocks)
        nothing = [0] * len(num_blocks)
        self._model.allocate_cache(self._cache_format, self._block_size, nothing)  # what is there now may be needed
        sizes = [self._model.cache_block_bytes(self._cache_format, g, self._block_size) for g in range(len(num_blocks))]
        needed = sum(size * n for size, n in zip(sizes, num_blocks, strict=True))
        free = available_memory()
        message = f"a cache of {needed / 2**20:.0f} MiB does not fit: {free / 2**20:.0f} MiB are free"
        if needed > free:
            raise InsufficientMemoryError(message)
        try:
            self._model.allocate_cache(self._cache_format, self._block_size, list(num_blocks))
        except MemoryError as error:
            raise InsufficientMemoryError(message) from error

    def give_back_blocks(self, group: int, blocks: ListLike[int]) -> None:
        """As GivesBlocksBack; consecutive blocks together, as a block may end within a page."""
        self._model.give_back_blocks(group, sorted(blocks))

    def execute(self, batch: Batch) -> StepHandle:
        """Runs the step before it returns; the handle is ready.

        Raises UnsupportedModelError naming a field it does not read, InvalidRequestError naming a field whose
        dtype, shape or values are not the contract's.
        """
        model, step = self._model, self._kept  # a batch that comes again is read already
        if step is None or step.batch is not batch:
            refuse_unread(batch, "cpu")
            step = None
        try:
            step = step or self._bind(model, batch)
            step.native.run()
        except MemoryError as error:
            raise InsufficientMemoryError(f"a step of {len(batch.input_ids)} tokens does not fit in memory") from error
        except ValueError as error:
            raise InvalidRequestError(f"batch: {error}") from error
        return _Finished(step.taken())

    def _bind(self, model: _native.Model, batch: Batch) -> _BoundStep:
        """The native step of a batch, kept for when the batch comes again."""
        result = empty_result(batch, self.vocab_size, self._spec.hidden_size)
        step = _BoundStep(batch, result, _native.Step(model, batch, *_arrays(result)))
        self._kept = step if step.is_reusable else None
        return step

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        """Raises InvalidRequestError as execute does."""
        choices = Choices(np.empty(len(logits), np.int32), np.full(len(logits), np.nan, np.float32))
        try:
            self._model.sample(logits, sampling, allow_mask, *choices)
        except ValueError as error:
            raise InvalidRequestError(f"sample: {error}") from error
        return choices

    def close(self) -> None:
        """Gives memory and threads back; the backend is of no use afterwards."""
        self._open_model = self._kept = None


def _arrays(
    result: StepResult,
) -> tuple[Int32, Float32, Int32, Int32, Float32, Float32, Float32 | None, Float32 | None]:
    return (
        result.token_ids,
        result.logprobs,
        result.ranks,
        result.top_ids,
        result.top_logprobs,
        result.sampler_state,
        result.logits,
        result.hidden,
    )


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """A batch, the arrays of its result, and the native step over both."""

    batch: Batch
    result: StepResult
    native: _native.Step

    @property
    def is_reusable(self) -> bool:
        return self.native.is_view and self.batch.want_logits is None and not self.batch.want_hidden

    def taken(self) -> StepResult:
        """The result, which another run will not overwrite."""
        if not self.is_reusable:
            return self.result
        r = self.result
        return StepResult(
            token_ids=r.token_ids.copy(),
            logprobs=r.logprobs.copy(),
            ranks=r.ranks.copy(),
            top_ids=r.top_ids.copy(),
            top_logprobs=r.top_logprobs.copy(),
            sampler_state=r.sampler_state.copy(),
        )


class _Finished:
    """The handle of a step that is done already."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result
