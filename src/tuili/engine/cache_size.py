"""How much of its memory a cache may use, which can change while the engine runs: what was never touched costs nothing.

Blocks are handed out from the first on, and the backend's memory is the system's to give: taking away blocks at the
end that nobody has had gives back all they would come to take.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import replace

from tuili.backend import CacheGroup
from tuili.config import EngineConfig
from tuili.engine.block_pool import BlockPool
from tuili.engine.cache_plan import needed_blocks, needed_bytes, plan_cache


class CacheSize:
    """The size of all caches of an engine together."""

    def __init__(self, groups: ListLike[CacheGroup], pools: ListLike[BlockPool], config: EngineConfig) -> None:
        """The pools are those of the groups, as large as what the backends have allocated."""
        self._groups, self._pools, self._config = groups, pools, config
        self._allocated = [pool.num_blocks for pool in pools]

    @property
    def num_bytes(self) -> int:
        """What the caches come to take when they are full."""
        return sum(g.block_bytes * pool.num_blocks for g, pool in zip(self._groups, self._pools, strict=True))

    def resize(self, num_bytes: int) -> int:
        """Bytes there are from now on: as many as wanted, but what has been touched and one context of max_model_len
        more at least, and what is allocated at most. Call between steps.
        """
        one_context = needed_blocks(self._groups, self._config, 1)
        wanted = max(num_bytes, needed_bytes(self._groups, self._config, 1))
        counts = plan_cache(self._groups, replace(self._config, kv_cache_memory_bytes=wanted))
        for pool, count, context, most in zip(self._pools, counts, one_context, self._allocated, strict=True):
            pool.resize(min(max(count, pool.num_touched + context), most))
        return self.num_bytes
