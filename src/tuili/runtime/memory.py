"""How long a context and how large a KV cache the free memory holds. Pure arithmetic over a measured limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tuili.backend import CacheGroup
from tuili.config import EngineConfig
from tuili.engine.cache_plan import needed_bytes
from tuili.errors import InsufficientMemoryError

CACHE_SHARE = 0.4  # of the memory that is free before the weights are packed
DEVICE_CACHE_SHARE = 0.85  # of what a GPU has left beside the weights; steps work in the rest


def size_cache(
    groups: Sequence[CacheGroup],
    config: EngineConfig,
    free_bytes: int,
    *,
    may_shorten: bool,
    share: float = CACHE_SHARE,
) -> EngineConfig:
    """`config` with kv_cache_memory_bytes for all its sequences at full length, but at most a share of what is free.

    With may_shorten, max_model_len comes down to what one sequence can have. Raises
    InsufficientMemoryError, with the numbers, when not even one sequence fits.
    """
    limit = int(free_bytes * share)
    fitting = _fitting_len(groups, config, limit)
    if fitting < (1 if may_shorten else config.max_model_len):
        need = needed_bytes(groups, config, 1)
        advice = f"lower max_model_len to {fitting}" if fitting else "free some memory"
        raise InsufficientMemoryError(
            f"a context of {config.max_model_len} tokens needs {need / 2**20:.1f} MiB of KV cache, "
            f"{limit / 2**20:.1f} MiB are available for it: {advice}"
        )
    config = replace(config, max_model_len=fitting)
    return replace(config, kv_cache_memory_bytes=min(needed_bytes(groups, config, config.max_num_seqs), limit))


def _fitting_len(groups: Sequence[CacheGroup], config: EngineConfig, limit: int) -> int:
    """The largest context, up to config.max_model_len, of which one sequence fits into `limit` bytes; 0: none."""
    low, high = 0, config.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        fits = needed_bytes(groups, replace(config, max_model_len=middle), 1) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
