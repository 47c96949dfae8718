"""How much memory the KV cache may take on this machine. Pure arithmetic over a measured limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuili.backend import CacheGroup
from tuili.errors import InsufficientMemoryError

CACHE_SHARE = 0.4  # of the memory that is free before the weights are packed


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheDemand:
    """What a context length and a number of sequences ask of the cache."""

    groups: Sequence[CacheGroup]
    max_model_len: int
    max_num_seqs: int

    def bytes_for(self, num_tokens: int) -> int:
        """Bytes of one sequence of num_tokens; window groups need no more than their window and a block."""
        return sum(g.block_bytes * _blocks(g, num_tokens) for g in self.groups)

    @property
    def one_sequence_bytes(self) -> int:
        return self.bytes_for(self.max_model_len)


def _blocks(group: CacheGroup, num_tokens: int) -> int:
    tokens = num_tokens if group.window is None else min(num_tokens, group.window + 2 * group.block_size)
    return -(-tokens // group.block_size)


def kv_cache_bytes(demand: CacheDemand, free_bytes: int) -> int:
    """Enough for every sequence at full length, but at most a share of what is free.

    Raises InsufficientMemoryError when not even one sequence of max_model_len fits.
    """
    limit = int(free_bytes * CACHE_SHARE)
    one = demand.one_sequence_bytes
    if one > limit:
        raise InsufficientMemoryError(
            f"a context of {demand.max_model_len} tokens needs {one / 2**20:.0f} MiB of KV cache, "
            f"{limit / 2**20:.0f} MiB are available for it: lower max_model_len to {_fitting_len(demand, limit)}"
        )
    return min(one * demand.max_num_seqs, limit)


def fitting_model_len(demand: CacheDemand, free_bytes: int) -> int:
    """The largest context up to demand.max_model_len whose cache fits."""
    return _fitting_len(demand, int(free_bytes * CACHE_SHARE))


def _fitting_len(demand: CacheDemand, limit: int) -> int:
    low, high = 0, demand.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if demand.bytes_for(middle) <= limit else (low, middle - 1)
    return low
