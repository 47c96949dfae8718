"""How much of its memory a cache may use, which can change while the engine runs: what is not used goes back.

Blocks that nobody has had take no memory. Those that were used take some until the backend gives it back, which is
what happens when the cache is made smaller and the backend can; where it cannot, they stay.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, replace
from functools import partial

from tuili.backend import Backend, CacheGroup, GivesBlocksBack
from tuili.config import EngineConfig
from tuili.engine.cache.block_pool import BlockPool
from tuili.engine.cache.cache_plan import needed_blocks, needed_bytes, plan_cache

GiveBack = Callable[[ListLike[int]], None]


@dataclass(frozen=True, slots=True)
class CachePart:
    """A group of a backend's cache, and the pool of its blocks. give_back is None where the backend keeps memory."""

    group: CacheGroup
    pool: BlockPool
    give_back: GiveBack | None

    def num_spare(self, *, may_forget: bool) -> int:
        """Blocks that the cache can go without, those that are cached only if that may be forgotten."""
        if self.give_back is None:
            return self.pool.num_untouched
        return self.pool.num_free - (0 if may_forget else self.pool.num_cached)

    def resize(self, num_blocks: int) -> None:
        pool = self.pool
        if num_blocks >= pool.num_blocks:
            pool.bring_back(num_blocks - pool.num_blocks)
            return
        taken = pool.take_away(pool.num_blocks - num_blocks)
        if self.give_back is not None:  # untouched ones with them: a page may reach from one into another
            self.give_back(taken)


def cache_parts(backend: Backend, groups: ListLike[CacheGroup], pools: ListLike[BlockPool]) -> list[CachePart]:
    """All of a backend's cache."""
    gives = backend.give_back_blocks if isinstance(backend, GivesBlocksBack) else None
    return [
        CachePart(group, pool, None if gives is None else partial(gives, g))
        for g, (group, pool) in enumerate(zip(groups, pools, strict=True))
    ]


class CacheSize:
    """The size of all caches of an engine together."""

    def __init__(self, parts: ListLike[CachePart], config: EngineConfig) -> None:
        self._parts, self._config = parts, config
        self._groups = [part.group for part in parts]

    @property
    def num_bytes(self) -> int:
        """What the caches come to take when they are full."""
        return sum(part.group.block_bytes * part.pool.num_blocks for part in self._parts)

    def resize(self, num_bytes: int, *, may_forget: bool = False) -> int:
        """Bytes there are from now on: as many as wanted, at least those in use and one context of max_model_len more,
        and at most what is allocated. Prefixes cached for later prompts are in use unless they may be forgotten.

        Call between steps.
        """
        one_context = needed_blocks(self._groups, self._config, 1)
        wanted = max(num_bytes, needed_bytes(self._groups, self._config, 1))
        counts = plan_cache(self._groups, replace(self._config, kv_cache_memory_bytes=wanted))
        for part, count, context in zip(self._parts, counts, one_context, strict=True):
            held = part.pool.num_blocks - part.num_spare(may_forget=may_forget)
            part.resize(min(max(count, min(held + context, part.pool.num_blocks)), part.pool.size))
        return self.num_bytes
