"""What a model will take, told from its header: how much context and cache it gets of so much free memory.

The predictor of `tuili plan`, asked about the processes that hold the engines. Reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuili.backend import CacheGroup
from tuili.backends import expected_backend
from tuili.backends.torch_sizes.footprint import SUPPORTED
from tuili.config import EngineConfig
from tuili.engine.cache.cache_plan import needed_bytes
from tuili.errors import InvalidRequestError
from tuili.models.features import unsupported_features
from tuili.runtime.front.modelfile_settings import model_context
from tuili.runtime.loading.load_options import is_automatic
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.loading.memory import CACHE_SHARE
from tuili.runtime.pool.engine_parts import EnginePart, Gpus, cpu_sizes, torch_sizes
from tuili.runtime.pool.memory_plan import HOST, DevicePart, Free, MemoryPlan
from tuili.store.store import Store
from tuili.weights.recipes import find_recipe

if TYPE_CHECKING:
    from tuili.runtime.plan.outline import Outline

LEAST_CONTEXT = 8192  # others are unloaded before a model gets less context than this, or than it has


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """One model: what its processes take without a cache, each of its device, and what a cache takes there."""

    groups: Sequence[CacheGroup]  # as an engine counts them
    config: EngineConfig  # max_model_len: as long as asked for, or as the model allows
    parts: Sequence[EnginePart]  # of all engines
    may_shorten: bool
    cache_share: float = CACHE_SHARE  # of what is free

    def fit(self, free: Free, least_context: int = LEAST_CONTEXT) -> MemoryPlan | None:
        """The plan within so many bytes; None where not even one sequence of the least context has room.

        The cache gets what all sequences need at full length, but no more than a share of what is free: other models
        come later.
        """
        least = self.config.max_model_len if not self.may_shorten else min(self.config.max_model_len, least_context)
        wanted, shortest = self.config.kv_cache_memory_bytes, self._cache(least, 1)
        left, share = self._room(free)
        limit = min(left, max(share, shortest)) if wanted is None else wanted
        if limit > left or shortest > limit or self.lacking(free, least_context):
            return None
        longest = _largest(least, self.config.max_model_len, lambda length: self._cache(length, 1) <= limit)
        return self._plan(longest, min(self._cache(longest, self.config.max_num_seqs), limit))

    def _room(self, free: Free) -> tuple[int, int]:
        """For a cache as an engine counts it: all that is left, and the share of it that it may have."""
        left, share = [], []
        for device, parts in self._by_device().items():
            if ratio := sum(part.cache_ratio for part in parts):
                fixed = sum(part.num_bytes for part in parts)
                left.append(int((free[device] - fixed) / ratio))
                share.append(int(free[device] * self.cache_share / ratio))
        return min(left), min(share)

    def _by_device(self) -> Mapping[str, list[EnginePart]]:
        found: dict[str, list[EnginePart]] = {}
        for part in self.parts:
            found.setdefault(part.device, []).append(part)
        return found

    def least(self, least_context: int = LEAST_CONTEXT) -> MemoryPlan:
        """The plan with room for one sequence of the least context."""
        length = self.config.max_model_len
        length = min(length, least_context) if self.may_shorten else length
        return self._plan(length, self.config.kv_cache_memory_bytes or self._cache(length, 1))

    def lacking(self, free: Free, least_context: int = LEAST_CONTEXT) -> set[str]:
        """Devices with less free memory than the least plan takes."""
        return {device for device, size in self.least(least_context).devices.items() if size > free[device]}

    def shortage(self, most: Free, num_pinned: int) -> str:
        """What the model needs beside the most there may be, of the devices where that is too little."""
        need, lacking = self.least(), self.lacking(most)
        pinned = f", {num_pinned} pinned models aside" if num_pinned else ""
        found = [
            f"{part.num_bytes / 2**20:.0f} MiB{'' if part.device == HOST else f' of {part.device}'} (weights "
            f"{part.weights / 2**20:.0f} MiB, KV cache of one context of {need.max_model_len} tokens "
            f"{part.kv_cache / 2**20:.0f} MiB), {max(0, most[part.device]) / 2**20:.0f} MiB may be taken{pinned}"
            for part in need.parts
            if part.device in lacking or not lacking
        ]
        return f"the model needs {'; '.join(found)}"

    def _plan(self, length: int, cache: int) -> MemoryPlan:
        parts = [
            DevicePart(
                device=device,
                weights=sum(part.weight_bytes for part in parts),
                kv_cache=int(cache * sum(part.cache_ratio for part in parts)),
                workspace=sum(part.workspace_bytes for part in parts),
                other=sum(part.other_bytes for part in parts),
            )
            for device, parts in self._by_device().items()
        ]
        return MemoryPlan(max_model_len=length, cache_bytes=cache, parts=tuple(parts))

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
    gpus: Gpus | None = None,
) -> Footprint:
    """From the header of a stored name or a path. A max_model_len beyond the model's is capped, or refused.

    options are of each replica. gpus: those whose memory is counted; None where all is counted in the host's.

    Raises what opening headers raises, UnsupportedModelError, and InvalidRequestError for options.
    """
    from tuili.runtime.plan.outline import open_outline

    recipe = None if options.quantization in (None, "gguf") else find_recipe(str(options.quantization))
    with open_outline(source, store, recipe) as outline:
        outlines = [outline]
    limit = outline.spec.max_position
    wanted = options.max_model_len or model_context(store.modelfile(source), limit)
    if wanted is not None and wanted > limit and not may_cap:
        raise InvalidRequestError(
            f"max_model_len must be in [1, {limit}] for {source!r:.200}, got {wanted}", param="max_model_len"
        )
    if options.speculative is not None and options.speculative.model is not None:
        with open_outline(options.speculative.model, store) as draft:
            outlines.append(draft)
    length = min(wanted or limit, limit)
    if _is_torch(options, outlines):
        sizes = torch_sizes(outlines, options, length, gpus, num_replicas)
    else:
        sizes = cpu_sizes(outlines, options, length, num_replicas)
        gpus = None
    config = EngineConfig(
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=sizes.num_tokens,
        block_size=options.block_size,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        kv_cache_dtype=sizes.kv_cache_dtype,
    )
    return Footprint(
        groups=sizes.groups,
        config=config,
        parts=sizes.parts,
        may_shorten=wanted is None,
        cache_share=CACHE_SHARE if gpus is None else gpus.cache_share,
    )


def _is_torch(options: LoadOptions, outlines: Sequence[Outline]) -> bool:
    """Whether torch will run it: where nobody says so, only what it implements."""
    if expected_backend(options.backend, options.device) != "torch":
        return False
    lacks = any(unsupported_features(outline.spec, SUPPORTED) for outline in outlines)
    return not (lacks and is_automatic(options))
