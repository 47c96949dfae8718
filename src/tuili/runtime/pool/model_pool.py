"""Many models on one machine: loaded when asked for, unloaded when idle or when their memory is needed.

                 use()                  memory is needed, keep-alive is over, unload()
    (absent) ──> waiting for room ──> loading ──> loaded ──> leaving (its users end, new ones wait) ──> (absent)

All of it in one event loop. Knows models by what they take; no files, no processes, no wire formats: `ModelHost` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Collection
from functools import partial

from tuili.config import store_dir
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, TuiliError
from tuili.runtime.pool.memory_plan import HOST, Free, MemoryPlan
from tuili.runtime.pool.model_host import LocalHost, ModelHost, StartModel
from tuili.runtime.pool.model_memory import LEAST_CONTEXT, Footprint
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_engine import start_served_model
from tuili.runtime.pool.served_model import ModelCard, ServedModel
from tuili.runtime.pool.served_names import KnownModel, ServedNames
from tuili.runtime.pool.settings import PoolSettings
from tuili.runtime.pool.slot import Slot, left_over
from tuili.runtime.supervision.supervised_engine import RestartPolicy
from tuili.store.store import Store

_log = logging.getLogger(__name__)


class ModelPool:
    """Loads what is asked for; see PoolSettings."""

    def __init__(self, settings: PoolSettings, names: ServedNames, host: ModelHost, pulls: Pulls) -> None:
        self.pulls = pulls  # which the host's are, too
        self._settings, self._names, self._host = settings, names, host
        self._slots: dict[str, Slot] = {}  # by the model's source
        self._room_turn = asyncio.Lock()  # who waits for room, in order
        self._changed = asyncio.Event()
        self._budget = host.budget_bytes(settings.memory_share)
        self._is_closed = False
        self._has_lost = asyncio.Event()
        self._pinned: set[str] = set()  # by source: also while one is loaded anew
        self._returning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the models named at start, one after the other. Raises what loading the first that fails raises."""
        for model in self._names.named:
            await self.load(model.name, keep_alive_s=-1, pin=self._settings.is_pinned)

    async def all_lost(self) -> list[str]:
        """Returns when the engines of all models that were named at start are given up: the models' names."""
        while True:
            await self._has_lost.wait()
            self._has_lost.clear()
            slots = [self._slots.get(model.source) for model in self._names.named]
            if slots and all(slot is not None and slot.is_lost for slot in slots):
                return [model.name for model in self._names.named]

    @property
    def default_name(self) -> str | None:
        """The model meant where a request names none."""
        return self._names.default

    @property
    def given_names(self) -> Collection[str]:
        """Names of the models named at start, as they were written there."""
        return self._names.given

    @contextlib.asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[ServedModel]:
        """The model, loaded, which stays so meanwhile. keep_alive_s is how long it stays idle from now on.

        Raises ModelNotFoundError, InsufficientMemoryError, EngineUnavailableError, and what loading raises.
        """
        slot = await self._enter(self._names.find(name), keep_alive_s)
        try:
            assert slot.model is not None
            yield slot.model
        finally:
            self._leave(slot)

    async def load(self, name: str, *, keep_alive_s: float | None = None, pin: bool = False) -> ServedModel:
        """Loads a model without a request; pinned, it stays until it is unloaded. Raises as `use` does."""
        async with self.use(name, keep_alive_s=keep_alive_s) as model:
            if pin:
                self._pinned.add(self._names.find(name).source)
                model.is_pinned = True
            return model

    async def unload(self, name: str, *, now: bool = False) -> None:
        """Unloads a model if it is loaded, after the requests that run; `now` ends those with an error.

        Raises ModelNotFoundError.
        """
        source = self._names.find(name).source
        self._pinned.discard(source)
        slot = self._slots.get(source)
        if slot is None:
            return
        slot.is_unloading = True
        if slot.model is None and now:
            slot.loading.cancel()
        elif slot.model is not None and (now or not slot.num_users):
            self._close(slot)
        while self._slots.get(slot.known.source) is slot:
            await self._next_change()

    def loaded(self) -> tuple[ServedModel, ...]:
        """Models that are loaded, in the order they were."""
        return tuple(slot.model for slot in self._slots.values() if slot.model is not None)

    def cards(self) -> tuple[ModelCard, ...]:
        """Every model that may be asked for: named at start, stored. Reads the store."""
        found = []
        for known in self._names.all():
            with contextlib.suppress(TuiliError):  # its files are gone or damaged: `tuili fsck` tells
                found.append(self._card(known))
        return tuple(found)

    def card(self, name: str) -> ModelCard:
        """One of them. Raises ModelNotFoundError."""
        return self._card(self._names.find(name))

    def _card(self, known: KnownModel) -> ModelCard:
        slot = self._slots.get(known.source)
        model = None if slot is None else slot.model
        return ModelCard(
            name=known.name,
            aliases=known.aliases,
            files=self._host.files(known) if model is None else model.files,
            is_loaded=model is not None,
            max_model_len=None if model is None else model.front.max_model_len,
        )

    async def aclose(self) -> None:
        """Unloads everything at once; what still runs ends with an error."""
        self._is_closed = True
        for slot in list(self._slots.values()):
            slot.loading.cancel()
            if slot.model is not None:
                self._close(slot)
        while self._slots:
            await self._next_change()

    # Users of a model come and go.

    async def _enter(self, known: KnownModel, keep_alive_s: float | None) -> Slot:
        async with self._in_time(known):
            while True:
                if self._is_closed:
                    raise EngineUnavailableError("the server is stopping")
                slot = self._slots.get(known.source)
                if slot is not None and slot.is_outdated:
                    self._close(slot)
                if slot is None or not slot.is_leaving:
                    return await self._join(slot or self._begin(known), keep_alive_s)
                await self._next_change()

    async def _join(self, slot: Slot, keep_alive_s: float | None) -> Slot:
        slot.enter()
        try:
            await asyncio.shield(slot.loading)
        except BaseException:
            self._leave(slot)
            task = asyncio.current_task()
            if slot.loading.cancelled() and task is not None and not task.cancelling():
                raise EngineUnavailableError(f"model {slot.known.name!r} was not loaded: that was stopped") from None
            raise
        if keep_alive_s is not None:
            slot.keep_alive_s = keep_alive_s
        return slot

    def _leave(self, slot: Slot) -> None:
        slot.leave()
        if slot.num_users == 0:
            if slot.model is not None:
                self._rest(slot)
            elif slot.plan is None:
                slot.is_unloading = True
                slot.loading.cancel()  # nobody waits for it any more, and nothing is begun
        self._notify()

    def _rest(self, slot: Slot) -> None:
        """What becomes of a loaded model that nobody uses."""
        assert slot.model is not None
        if self._is_closed or slot.is_leaving or (slot.keep_alive_s == 0 and not slot.model.is_pinned):
            self._close(slot)
        else:
            slot.expire_later(self._expire)

    def _expire(self, slot: Slot) -> None:
        if slot.is_idle:
            self._close(slot)

    # A model is loaded.

    def _begin(self, known: KnownModel) -> Slot:
        keep_alive_s = -1.0 if known.is_named else self._settings.keep_alive_s
        slot = Slot(known, keep_alive_s)
        slot.loading = asyncio.get_running_loop().create_task(self._load(slot), name=f"load {known.name}")
        slot.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # told, or nobody is left
        self._slots[known.source] = slot
        return slot

    async def _load(self, slot: Slot) -> None:
        """Makes room and loads. However that ends, those who wait for it hear of it, and a failure is forgotten."""
        known, clock = slot.known, asyncio.get_running_loop().time
        try:
            footprint = await self._host.footprint(known)
            async with self._room_turn:
                slot.plan = await self._make_room(footprint)
            files, start_s = self._host.files(known), clock()
            async with self._in_time(known):
                slot.started = await self._host.start(known, slot.plan)
            slot.model = ServedModel(
                name=known.name,
                aliases=known.aliases,
                front=slot.started.front,
                client=slot.started.client,
                files=files,
                max_num_seqs=self._settings.load.max_num_seqs * self._settings.num_replicas,
                plan=slot.plan,
                loaded_at=time.time(),
                load_s=clock() - start_s,
                is_pinned=known.source in self._pinned,
            )
            slot.has_loaded()
            slot.started.client.on_given_up = partial(self._note_lost, known.name)
            self._returning = asyncio.create_task(self._give_back())  # what making room left over
            if slot.num_users == 0:
                self._rest(slot)
        except BaseException:
            try:
                await slot.free()
            finally:
                del self._slots[known.source]
            raise
        finally:
            self._notify()

    @contextlib.asynccontextmanager
    async def _in_time(self, known: KnownModel) -> AsyncIterator[None]:
        limit = self._settings.load_timeout_s
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise EngineUnavailableError(f"model {known.name!r} was not loaded within {limit:g} s") from None

    # Room is made for it.

    async def _make_room(self, footprint: Footprint) -> MemoryPlan:
        """Until it fits: takes back cache that is not used, then cached prefixes, unloads idle models, asks busy ones
        to leave. Of each kind those first that were used longest ago.
        """
        asked: list[Slot] = []
        for slot in self._slots.values():
            slot.num_lent = 0
        try:
            while True:
                # What a model takes that is coming or going is known when that is done: nothing is refused meanwhile.
                is_known = not self._is_changing() and not self._lenders(footprint)
                least = self._least_context(footprint) if is_known else LEAST_CONTEXT
                if not self._is_full():
                    plan = footprint.fit(self._free_bytes(), least)
                    if plan is not None:
                        return plan
                await self._wait_for_room(footprint, asked)
        finally:
            for slot in asked:  # those still at work may stay
                slot.is_asked = False

    async def _wait_for_room(self, footprint: Footprint, asked: list[Slot]) -> None:
        if self._is_changing():
            await self._next_change()
            return
        if lenders := self._lenders(footprint):
            await min(lenders, key=lambda slot: (slot.num_lent, slot.num_users > 0, slot.last_used_s)).lend()
            return
        slots = self._in_the_way(footprint)
        if idle := [slot for slot in slots if slot.is_idle]:
            self._close(min(idle, key=lambda slot: slot.last_used_s))
            return
        now = asyncio.get_running_loop().time()
        busy = [slot for slot in slots if slot.may_be_unloaded and not slot.is_leaving]
        ripe = [slot for slot in busy if slot.stays_until_s <= now]
        if ripe and not any(slot.is_leaving for slot in asked):
            asked.append(min(ripe, key=lambda slot: slot.last_used_s))
            asked[-1].is_asked = True
        soonest = min((slot.stays_until_s - now for slot in busy if slot not in ripe), default=None)
        await self._next_change(soonest)

    def _least_context(self, footprint: Footprint) -> int:
        """The context to hold out for: a short one only where even an empty machine has room for no more.

        Raises InsufficientMemoryError, with the numbers, when what may be unloaded does not make room enough.
        """
        slots = self._granted()
        staying = [slot for slot in slots if slot.model is not None and not slot.may_be_unloaded]
        if len(staying) >= (self._settings.max_loaded_models or len(self._slots)):
            raise InsufficientMemoryError(
                f"max_loaded_models is {self._settings.max_loaded_models}, and as many models are pinned"
            )
        leaving = [slot for slot in slots if slot not in staying]
        most = {
            device: free + sum(slot.granted_bytes(device) for slot in leaving)
            for device, free in self._free_bytes().items()
        }
        for least in (LEAST_CONTEXT, 1):
            if footprint.fit(most, least) is not None:
                return least
        raise InsufficientMemoryError(footprint.shortage(most, len(staying)))

    def _granted(self) -> list[Slot]:
        """Those that have memory."""
        return [slot for slot in self._slots.values() if slot.plan is not None]

    def _is_full(self) -> bool:
        """Of as many models as may be loaded."""
        return len(self._granted()) >= (self._settings.max_loaded_models or len(self._slots))

    def _in_the_way(self, footprint: Footprint) -> list[Slot]:
        """Those that have what is missing: a place among the loaded, or memory of a device that has too little."""
        slots = self._granted()
        lacking = set() if self._is_full() else footprint.lacking(self._free_bytes())
        return [slot for slot in slots if any(map(slot.granted_bytes, lacking))] or slots

    def _lenders(self, footprint: Footprint) -> list[Slot]:
        """Those from whose caches memory may be had, where that is what is missing: the host's."""
        if self._is_full() or HOST not in footprint.lacking(self._free_bytes()):
            return []
        return [slot for slot in self._granted() if slot.may_lend]

    def _is_changing(self) -> bool:
        return any(slot.model is None or slot.closing is not None for slot in self._granted())

    def _free_bytes(self) -> Free:
        """What a further model may take of each device: of the budget, and of the memory that is really there."""
        return left_over(self._budget, self._host.free_bytes(), self._granted())

    # A model goes.

    def _note_lost(self, name: str) -> None:
        _log.error("model %s: its engine ended again and again, or cannot be started: it is given up for now", name)
        self._has_lost.set()

    def _close(self, slot: Slot) -> None:
        if slot.closing is None:
            slot.is_unloading = True
            slot.closing = asyncio.get_running_loop().create_task(self._closed(slot), name=f"unload {slot.known.name}")

    async def _closed(self, slot: Slot) -> None:
        try:
            await slot.free()
        except Exception:
            _log.exception("unloading %s", slot.known.name)
        finally:
            del self._slots[slot.known.source]
            self._notify()
        await self._give_back()

    async def _give_back(self) -> None:
        """Gives caches what was taken from them, that of the model used last first."""
        if self._is_closed or self._room_turn.locked():  # somebody waits for just that memory
            return
        async with self._room_turn:
            for slot in sorted(self._granted(), key=lambda slot: -slot.last_used_s):
                await slot.give_back(self._free_bytes()[HOST])

    # Whoever waits for any of that looks again when something changed.

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _next_change(self, timeout_s: float | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()


def open_pool(settings: PoolSettings, start_model: StartModel | None = None) -> ModelPool:
    """Over the user's store, a process for each engine. Raises InvalidRequestError for a name given to two models."""
    store = Store(store_dir())
    names = ServedNames(settings.models, store, only_named=settings.only_named, allow_pull=settings.allow_pull)
    policy = RestartPolicy(hang_timeout_s=settings.hang_timeout_s)
    start = start_model or partial(start_served_model, policy=policy, num_replicas=settings.num_replicas)
    threading.Thread(target=store.list, name="tuili-list", daemon=True).start()  # read once, later asks are quick
    pulls = Pulls(settings.max_pulls)
    return ModelPool(settings, names, LocalHost(settings, store, start, pulls), pulls)
