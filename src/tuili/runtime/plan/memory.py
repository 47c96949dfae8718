"""How much memory a model takes at a context and a number of sequences, and what is the most that fits. Arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tuili.backend import CacheGroup
from tuili.backends.cpu.footprint import cache_groups, weight_bytes, workspace_bytes
from tuili.config import EngineConfig, KvCacheDtype
from tuili.engine.cache.cache_plan import needed_bytes
from tuili.models.spec import ModelSpec
from tuili.runtime.loading.loading import DEFAULT_BATCHED_TOKENS
from tuili.runtime.loading.memory import CACHE_SHARE
from tuili.runtime.plan.outline import Outline
from tuili.runtime.plan.python_side import PythonSide

BLOCK_SIZE = 64
MAX_PARALLEL = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes at one context and concurrency, every sequence grown to the whole context.

    peak_own_bytes: the most a process has of its own, while it loads or while it works.
    peak_mapped_bytes: the most it has of mapped files, while it loads; the system may drop those.
    """

    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    python_bytes: int
    peak_own_bytes: int
    peak_mapped_bytes: int


class MemoryModel:
    """One model with one kind of cache, on a machine with so much memory free."""

    def __init__(
        self, outline: Outline, side: PythonSide, kv_cache_dtype: KvCacheDtype, num_threads: int, free_bytes: int
    ) -> None:
        """Raises UnsupportedModelError naming what the backend lacks."""
        self.spec: ModelSpec = outline.spec
        self.groups: tuple[CacheGroup, ...] = cache_groups(outline.spec, kv_cache_dtype, BLOCK_SIZE)
        self.weight_bytes = weight_bytes(outline.stored)
        self.free_bytes = free_bytes
        self._side, self._file_bytes, self._num_threads = side, outline.file_bytes, num_threads

    @property
    def kv_token_bytes(self) -> float:
        """Bytes that one more token takes, as long as no window is full."""
        return sum(group.block_bytes for group in self.groups) / BLOCK_SIZE

    def need(self, ctx: int, parallel: int) -> MemoryNeed:
        """What `parallel` sequences of `ctx` tokens each take."""
        num_tokens = max(DEFAULT_BATCHED_TOKENS, parallel)
        config = EngineConfig(
            max_model_len=ctx, max_num_seqs=parallel, max_num_batched_tokens=num_tokens, block_size=BLOCK_SIZE
        )
        cache = needed_bytes(self.groups, config, parallel)
        work = workspace_bytes(
            self.spec,
            num_tokens=min(num_tokens, ctx * parallel),
            num_rows=parallel,
            num_positions=ctx,
            num_threads=self._num_threads,
        )
        working = self.weight_bytes + self._side.own_bytes + cache + work
        return MemoryNeed(
            weight_bytes=self.weight_bytes,
            kv_cache_bytes=cache,
            workspace_bytes=work,
            python_bytes=self._side.own_bytes,
            peak_own_bytes=max(self.weight_bytes + self._side.peak_own_bytes, working),
            peak_mapped_bytes=self._side.mapped_bytes + self._file_bytes,
        )

    def fits(self, ctx: int, parallel: int) -> bool:
        """Whether all of it is there, and the cache within the share that loading grants it."""
        need = self.need(ctx, parallel)
        return need.peak_own_bytes <= self.free_bytes and need.kv_cache_bytes <= int(self.free_bytes * CACHE_SHARE)

    def largest_ctx(self, parallel: int) -> int:
        """The longest context, at most the model's, that so many sequences can have at once; 0: none."""
        return largest(self.spec.max_position, lambda ctx: self.fits(ctx, parallel))

    def largest_parallel(self, ctx: int) -> int:
        """How many sequences, at most MAX_PARALLEL, can have that context at once; 0: none."""
        return largest(MAX_PARALLEL, lambda parallel: self.fits(ctx, parallel))


def largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, where no larger one fits than one that does not."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
