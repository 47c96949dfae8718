"""The place of one model in a pool: who uses it, how long it stays, and what it takes. `ModelPool` decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from tuili.runtime.pool.memory_plan import HOST, Free, MemoryPlan
from tuili.runtime.pool.served_model import ServedModel, StartedModel
from tuili.runtime.pool.served_names import KnownModel

# A model in use is asked to leave after this many times what loading took, and not before so many seconds: models
# that do not fit together take turns instead of thrashing.
_STAY_PER_LOAD, _MIN_STAY_S = 4.0, 5.0
_MAX_LENT = 2  # times that a cache is asked for what it can spare


class Slot:
    """plan is None while the model waits for room, model is None until it is loaded; closing is set once it goes.

    num_users counts requests that use the model or wait for it. is_unloading: it goes for good; is_asked: its memory is
    needed, until that is taken back. In either case new requests wait.
    keep_alive_s is for an idle model: 0 no time, negative for ever.
    """

    loading: asyncio.Task[None]

    def __init__(self, known: KnownModel, keep_alive_s: float) -> None:
        self.known, self.keep_alive_s = known, keep_alive_s
        self.plan: MemoryPlan | None = None
        self.full_cache_bytes = 0  # granted for the cache before any was taken back
        self.num_lent = 0  # times that it was asked to, since somebody has been waiting for room
        self.started: StartedModel | None = None
        self.model: ServedModel | None = None
        self.closing: asyncio.Task[None] | None = None
        self.num_users = 0
        self.is_unloading = self.is_asked = False
        self.stays_until_s = 0.0  # these two on the event loop's clock
        self.last_used_s = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle | None = None
        self._resizing: asyncio.Task[None] | None = None  # the latest

    def granted_bytes(self, device: str) -> int:
        """Of that device, to it."""
        return 0 if self.plan is None else self.plan.devices.get(device, 0)

    def untouched_bytes(self, device: str) -> int:
        """Of those, what it has not taken yet. A GPU's are taken when the model is loaded."""
        granted = self.granted_bytes(device)
        if self.started is None or not granted:
            return granted
        return max(0, granted - self.started.client.own_bytes) if device == HOST else 0

    @property
    def may_lend(self) -> bool:
        """Loaded, with a cache of which something may be taken back."""
        if self.plan is None or self.plan.is_on_gpu or self.model is None or self.is_leaving:
            return False
        return self.num_lent < _MAX_LENT and self.cache_bytes > 0

    @property
    def cache_bytes(self) -> int:
        """Granted for its cache."""
        return 0 if self.plan is None else self.plan.kv_cache_bytes

    async def lend(self) -> None:
        """Takes back of the cache what is beyond the part in use and one context more.

        At first that is what costs nobody anything; the second time cached prefixes go, too.
        """
        self.full_cache_bytes = max(self.full_cache_bytes, self.cache_bytes)
        self.num_lent += 1
        await self._resize_cache(0, may_forget=self.num_lent == _MAX_LENT)

    async def give_back(self, num_bytes: int) -> None:
        """Gives the cache what was taken, up to so many bytes."""
        missing = min(self.full_cache_bytes - self.cache_bytes, num_bytes)
        if self.model is not None and not self.is_leaving and missing > 0:
            await self._resize_cache(self.cache_bytes + missing)

    async def _resize_cache(self, num_bytes: int, *, may_forget: bool = False) -> None:
        """The engine does it though whoever asked may leave, so that what came of it is taken note of in any case."""
        self._resizing = asyncio.create_task(self._note_resized(num_bytes, may_forget))
        await asyncio.shield(self._resizing)

    async def _note_resized(self, num_bytes: int, may_forget: bool) -> None:
        assert self.started is not None
        assert self.plan is not None
        assert self.model is not None
        size = await self.started.client.resize_cache(num_bytes, may_forget=may_forget)
        self.plan = self.plan.with_host_cache(size)
        self.model.plan = self.plan

    @property
    def is_leaving(self) -> bool:
        return self.is_unloading or self.is_asked

    @property
    def may_be_unloaded(self) -> bool:
        return self.model is not None and not self.model.is_pinned

    @property
    def is_idle(self) -> bool:
        """Loaded, and nobody minds if it goes."""
        return self.may_be_unloaded and self.num_users == 0 and not self.is_leaving

    @property
    def is_lost(self) -> bool:
        """Loaded once, and without an engine now."""
        return self.started is not None and self.started.client.is_given_up

    @property
    def is_outdated(self) -> bool:
        """Lost, and only loading anew helps."""
        return self.started is not None and self.started.client.is_outdated

    def enter(self) -> None:
        """A request uses the model or waits for it."""
        self.num_users += 1
        self.last_used_s = asyncio.get_running_loop().time()
        self._stop_timer()
        self._tell()

    def leave(self) -> None:
        self.num_users -= 1
        self.last_used_s = asyncio.get_running_loop().time()
        self._tell()

    def has_loaded(self) -> None:
        assert self.model is not None
        stay_s = max(_MIN_STAY_S, _STAY_PER_LOAD * self.model.load_s)
        self.stays_until_s = asyncio.get_running_loop().time() + stay_s
        self._tell()

    def expire_later(self, expire: Callable[[Slot], None]) -> None:
        """Calls `expire` when the model has been idle for as long as it may."""
        self._stop_timer()
        if self.keep_alive_s >= 0 and self.may_be_unloaded:
            self._timer = asyncio.get_running_loop().call_later(self.keep_alive_s, expire, self)
        self._tell()

    async def free(self) -> None:
        """Ends the engine, with what it still runs."""
        self._stop_timer()
        if self.started is not None:
            await self.started.client.aclose()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        if self.model is not None:
            self.model.num_active = self.num_users
            stays = self.keep_alive_s < 0 or self.model.is_pinned
            self.model.expires_at = None if stays else time.time() + self.keep_alive_s


def left_over(budget: Free, free: Free, slots: Sequence[Slot]) -> Free:
    """Of each device's budget and of what is free there.

    Caches fill as they are used: what a model has been granted and not yet taken is not free.
    """
    return {
        device: min(
            budget[device] - sum(slot.granted_bytes(device) for slot in slots),
            num_bytes - sum(slot.untouched_bytes(device) for slot in slots),
        )
        for device, num_bytes in free.items()
    }
