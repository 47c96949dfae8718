"""What a model will take, told from its header: how much context and cache it gets of so much free memory.

The predictor of `tuili plan`, asked about the process that holds the engine. Reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tuili.backend import CacheGroup
from tuili.backends import expected_backend
from tuili.config import EngineConfig, KvCacheDtype
from tuili.engine.cache_plan import needed_bytes
from tuili.errors import InvalidRequestError
from tuili.models.spec import ModelSpec
from tuili.runtime.load_options import cpu_cache_dtype
from tuili.runtime.loading import DEFAULT_BATCHED_TOKENS, LoadOptions
from tuili.runtime.memory import CACHE_SHARE
from tuili.runtime.modelfile_settings import model_context
from tuili.runtime.torch_memory import GPU_CONTEXT_BYTES
from tuili.store.store import Store
from tuili.weights.recipes import find_recipe

LEAST_CONTEXT = 8192  # others are unloaded before a model gets less context than this, or than it has
ENGINE_BYTES = 60 << 20  # interpreter and libraries of an engine's process
TOKENIZER_BYTES = 530  # for a vocabulary entry, of the process that speaks HTTP


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """A context and a cache that fit, and the bytes that everything takes."""

    max_model_len: int
    kv_cache_bytes: int
    weight_bytes: int
    workspace_bytes: int
    other_bytes: int = 0  # interpreter, libraries, tokenizer
    is_on_gpu: bool = False  # all of it, and allocated when the model is loaded

    @property
    def num_bytes(self) -> int:
        return self.kv_cache_bytes + self.weight_bytes + self.workspace_bytes + self.other_bytes

    def by_kind(self) -> Mapping[str, int]:
        """Bytes by what takes them."""
        return {
            "weights": self.weight_bytes,
            "kv_cache": self.kv_cache_bytes,
            "workspace": self.workspace_bytes,
            "other": self.other_bytes,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """One model: what an engine of it takes without a cache, and what a cache takes; plans are for all replicas."""

    groups: Sequence[CacheGroup]
    config: EngineConfig  # max_model_len: as long as asked for, or as the model allows
    weight_bytes: int
    workspace_bytes: int
    other_bytes: int
    may_shorten: bool
    num_replicas: int = 1
    is_on_gpu: bool = False
    cache_share: float = CACHE_SHARE  # of what is free

    def fit(self, free_bytes: int, least_context: int = LEAST_CONTEXT) -> MemoryPlan | None:
        """The plan within so many bytes; None where not even one sequence of the least context has room.

        The cache gets what all sequences need at full length, but no more than a share of what is free: other models
        come later.
        """
        free_bytes //= self.num_replicas
        left = free_bytes - self.weight_bytes - self.workspace_bytes - self.other_bytes
        least = self.config.max_model_len if not self.may_shorten else min(self.config.max_model_len, least_context)
        wanted = self.config.kv_cache_memory_bytes
        limit = min(left, max(int(free_bytes * self.cache_share), self._cache(least, 1))) if wanted is None else wanted
        if limit > left or self._cache(least, 1) > limit:
            return None
        longest = _largest(least, self.config.max_model_len, lambda length: self._cache(length, 1) <= limit)
        return self._plan(longest, min(self._cache(longest, self.config.max_num_seqs), limit))

    def least(self) -> MemoryPlan:
        """The plan with room for one sequence of the least context."""
        length = self.config.max_model_len
        length = min(length, LEAST_CONTEXT) if self.may_shorten else length
        return self._plan(length, self.config.kv_cache_memory_bytes or self._cache(length, 1))

    def _plan(self, length: int, cache: int) -> MemoryPlan:
        return MemoryPlan(
            max_model_len=length,
            kv_cache_bytes=cache * self.num_replicas,
            weight_bytes=self.weight_bytes * self.num_replicas,
            workspace_bytes=self.workspace_bytes * self.num_replicas,
            other_bytes=self.other_bytes * self.num_replicas,
            is_on_gpu=self.is_on_gpu,
        )

    def _cache(self, length: int, num_sequences: int) -> int:
        return needed_bytes(self.groups, replace(self.config, max_model_len=length), num_sequences)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in [low, high] that fits, where `low` does and none that is larger than one that does not."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def read_footprint(
    source: str,
    store: Store,
    options: LoadOptions,
    *,
    may_cap: bool,
    num_replicas: int = 1,
    gpu_share: float | None = None,
) -> Footprint:
    """From the header of a stored name or a path. A max_model_len beyond the model's is capped, or refused.

    options are of each replica. gpu_share is of a GPU's free memory what a cache may take, where the model's memory is
    counted there.

    Raises what opening headers raises, UnsupportedModelError, and InvalidRequestError for options.
    """
    from tuili.runtime.plan.outline import open_outline

    on_gpu = gpu_share is not None
    sizes = _sizes(options, on_gpu=on_gpu)
    recipe = None if options.quantization in (None, "gguf") else find_recipe(str(options.quantization))
    with open_outline(source, store, recipe) as outline:
        spec, stored = outline.spec, [outline.stored]
    limit = spec.max_position
    wanted = options.max_model_len or model_context(store.modelfile(source), limit)
    if wanted is not None and wanted > limit and not may_cap:
        raise InvalidRequestError(
            f"max_model_len must be in [1, {limit}] for {source!r:.200}, got {wanted}", param="max_model_len"
        )
    groups = list(sizes.cache_groups(spec))
    if options.speculative is not None and options.speculative.model is not None:
        with open_outline(options.speculative.model, store) as draft:
            groups += sizes.cache_groups(draft.spec)
            stored.append(draft.stored)
    num_seqs, length = options.max_num_seqs, min(wanted or limit, limit)
    num_tokens = options.max_num_batched_tokens or max(sizes.batched_tokens, num_seqs)
    return Footprint(
        groups=groups,
        config=_engine_config(options, length, num_tokens, sizes.kv_cache_dtype),
        weight_bytes=sum(map(sizes.weight_bytes, stored)),
        workspace_bytes=sizes.workspace_bytes(spec, num_tokens, num_seqs, length),
        other_bytes=GPU_CONTEXT_BYTES
        if on_gpu
        else ENGINE_BYTES + sizes.library_bytes + spec.vocab_size * TOKENIZER_BYTES,
        may_shorten=wanted is None,
        num_replicas=num_replicas,
        is_on_gpu=on_gpu,
        cache_share=CACHE_SHARE if gpu_share is None else gpu_share,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """How large a model's parts are in one backend."""

    kv_cache_dtype: KvCacheDtype
    cache_groups: Callable[[ModelSpec], tuple[CacheGroup, ...]]
    weight_bytes: Callable[[Mapping[str, tuple[str, tuple[int, ...]]]], int]
    workspace_bytes: Callable[[ModelSpec, int, int, int], int]  # tokens, rows, positions
    library_bytes: int = 0
    batched_tokens: int = DEFAULT_BATCHED_TOKENS


def _sizes(options: LoadOptions, *, on_gpu: bool) -> _Sizes:
    is_torch = expected_backend(options.backend, options.device) == "torch"
    return _torch_sizes(options, on_gpu=on_gpu) if is_torch else _cpu_sizes(options)


def _cpu_sizes(options: LoadOptions) -> _Sizes:
    from tuili.backends.cpu import footprint
    from tuili.machine import thread_limits

    dtype = cpu_cache_dtype(options.kv_cache_dtype)
    num_threads = thread_limits(options.num_threads).num_threads
    return _Sizes(
        kv_cache_dtype=dtype,
        cache_groups=lambda spec: footprint.cache_groups(spec, dtype, options.block_size),
        weight_bytes=footprint.weight_bytes,
        workspace_bytes=lambda spec, num_tokens, num_rows, num_positions: footprint.workspace_bytes(
            spec, num_tokens=num_tokens, num_rows=num_rows, num_positions=num_positions, num_threads=num_threads
        ),
    )


def _torch_sizes(options: LoadOptions, *, on_gpu: bool) -> _Sizes:
    from tuili.runtime import torch_memory

    dtype: KvCacheDtype = options.kv_cache_dtype  # type: ignore[assignment]  # checked by LoadOptions
    item = torch_memory.item_bytes(options.dtype, options.device)
    return _Sizes(
        kv_cache_dtype=dtype,
        cache_groups=lambda spec: torch_memory.cache_groups(spec, dtype, item, options.block_size),
        weight_bytes=lambda stored: torch_memory.weight_bytes(stored, item, keeps_packed=on_gpu),
        workspace_bytes=lambda spec, num_tokens, num_rows, num_positions: torch_memory.workspace_bytes(
            spec, num_tokens=num_tokens, num_positions=num_positions
        ),
        library_bytes=torch_memory.LIBRARY_BYTES,
        batched_tokens=torch_memory.GPU_BATCHED_TOKENS if on_gpu else DEFAULT_BATCHED_TOKENS,
    )


def _engine_config(
    options: LoadOptions, max_model_len: int, num_tokens: int, kv_cache_dtype: KvCacheDtype
) -> EngineConfig:
    return EngineConfig(
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=num_tokens,
        block_size=options.block_size,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        kv_cache_dtype=kv_cache_dtype,
    )
