"""How many blocks each cache group gets out of a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

from tuili.backend import CacheGroup
from tuili.config import EngineConfig
from tuili.engine.cache.block_manager import num_spanned
from tuili.errors import InsufficientMemoryError, UnsupportedModelError

DEFAULT_CACHE_BYTES = 1 << 30  # at most, when kv_cache_memory_bytes is None


def plan_cache(groups: ListLike[CacheGroup], config: EngineConfig) -> list[int]:
    """Blocks per group: equally many, but no window group gets more than all its sequences can hold at once.

    Without kv_cache_memory_bytes that is enough for max_num_seqs contexts of max_model_len, within
    DEFAULT_CACHE_BYTES. Raises UnsupportedModelError for a kind of group the engine does not run,
    InsufficientMemoryError when the budget does not buy one block of each.
    """
    for g, group in enumerate(groups):
        if group.kind not in ("full", "window"):
            raise UnsupportedModelError(
                f"cache group {g} is of kind '{group.kind}'; the engine runs the kinds 'full' and 'window'"
            )
        assert group.block_size == config.block_size
    limits = [_most_useful(group, config) for group in groups]
    budget = DEFAULT_CACHE_BYTES if config.kv_cache_memory_bytes is None else config.kv_cache_memory_bytes
    low, high = 0, budget // min(group.block_bytes for group in groups)
    if config.kv_cache_memory_bytes is None:
        high = min(high, config.max_num_seqs * -(-config.max_model_len // config.block_size))
    while low < high:
        count = (low + high + 1) // 2
        low, high = (count, high) if _bytes(groups, _counts(limits, count)) <= budget else (low, count - 1)
    if low == 0:
        raise InsufficientMemoryError(
            f"kv_cache_memory_bytes: {budget} bytes were given, one block of {config.block_size} tokens "
            f"needs {_bytes(groups, [1] * len(groups))}"
        )
    return _counts(limits, low)


def needed_bytes(groups: ListLike[CacheGroup], config: EngineConfig, num_sequences: int) -> int:
    """The kv_cache_memory_bytes with which plan_cache holds so many sequences of max_model_len."""
    return _bytes(groups, needed_blocks(groups, config, num_sequences))


def needed_blocks(groups: ListLike[CacheGroup], config: EngineConfig, num_sequences: int) -> list[int]:
    """The blocks per group that so many sequences of max_model_len need."""
    count = num_sequences * -(-config.max_model_len // config.block_size)
    return _counts([_most_useful(group, config) for group in groups], count)


def _most_useful(group: CacheGroup, config: EngineConfig) -> int | None:
    """Blocks beyond which a window group could not use more; None for a full group."""
    if group.window is None:
        return None
    decoding = config.max_num_seqs * num_spanned(group.window, group.block_size)
    return decoding + num_spanned(config.max_num_batched_tokens, group.block_size)


def _counts(limits: ListLike[int | None], count: int) -> list[int]:
    return [count if limit is None else min(count, limit) for limit in limits]


def _bytes(groups: ListLike[CacheGroup], counts: ListLike[int]) -> int:
    return sum(group.block_bytes * count for group, count in zip(groups, counts, strict=True))
