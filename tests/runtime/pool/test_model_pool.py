"""The pool of models, over a machine that exists on paper only: memory in MiB, a clock that jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.virtual_loop import run_virtually
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, ModelFileError, ModelNotFoundError
from tuili.runtime.pool.memory_plan import HOST, DevicePart, Free, MemoryPlan
from tuili.runtime.pool.model_pool import ModelPool
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.pool.served_names import KnownModel, ServedNames
from tuili.runtime.pool.settings import NamedModel, PoolSettings
from tuili.store.records import ModelFiles
from tuili.store.store import Store

MIB = 1 << 20
LOAD_S = 2.0


class _Footprint:
    """So many MiB of each device, whatever the context; the least context fits where the rest does. Beside that a
    cache on the first one, which gets what there is up to `most_mib` and needs `least_mib`."""

    def __init__(self, sizes: Mapping[str, int], least_mib: int = 0, most_mib: int = 0) -> None:
        self._sizes, self._least_mib, self._most_mib = sizes, least_mib, most_mib

    def fit(self, free: Free, least_context: int) -> MemoryPlan | None:
        if self.lacking(free):
            return None
        device, size = next(iter(self._sizes.items()))
        return self._plan(min(free[device] - size * MIB, self._most_mib * MIB))

    def least(self) -> MemoryPlan:
        return self._plan(self._least_mib * MIB)

    def lacking(self, free: Free) -> set[str]:
        return {device for device, size in self.least().devices.items() if size > free[device]}

    def shortage(self, most: Free, num_pinned: int) -> str:
        return f"needs {self.least().num_bytes // MIB} MiB, {most[HOST] // MIB} may be taken, {num_pinned} pinned"

    def _plan(self, cache: int) -> MemoryPlan:
        parts = [
            DevicePart(device=device, weights=size * MIB, kv_cache=0 if i else cache, workspace=0)
            for i, (device, size) in enumerate(self._sizes.items())
        ]
        return MemoryPlan(max_model_len=128, cache_bytes=cache, parts=tuple(parts))


class _Engine:
    """What the pool does with an engine."""

    def __init__(self, machine: Machine, name: str, plan: MemoryPlan) -> None:
        self._machine, self._name = machine, name
        self._most_cache_bytes = plan.kv_cache_bytes
        self.own_bytes = machine.sizes_of(name).get(HOST, 1) * MIB
        self.on_given_up: Callable[[], None] | None = None
        self.is_given_up = self.is_outdated = False

    def give_up(self, *, is_outdated: bool = False) -> None:
        self.is_given_up, self.is_outdated = True, is_outdated
        assert self.on_given_up is not None
        self.on_given_up()

    async def resize_cache(self, num_bytes: int, *, may_forget: bool = False) -> int:
        await asyncio.sleep(0.01)
        least_mib, _ = self._machine.caches[self._name]
        kept_mib = 0 if may_forget else self._machine.prefixes.get(self._name, 0)
        return min(max(num_bytes, (least_mib + kept_mib) * MIB), self._most_cache_bytes)

    async def aclose(self) -> None:
        await self._machine.end(self._name)


class Machine:
    """A ModelHost with memory of its own. `started` and `ended` say what was loaded and unloaded, in order."""

    def __init__(self, num_mib: int, sizes: Mapping[str, int]) -> None:
        self.num_mib, self.sizes = {HOST: num_mib}, dict(sizes)
        self.places: dict[str, Mapping[str, int]] = {}  # MiB of each device, of models that are not in host memory
        self.caches: dict[str, tuple[int, int]] = {}  # MiB that a cache needs, and those it can use
        self.prefixes: dict[str, int] = {}  # MiB beside those that are cached for later
        self.running: list[str] = []
        self.started: list[str] = []
        self.ended: list[str] = []
        self.engines: dict[str, _Engine] = {}
        self.failures: dict[str, Exception] = {}

    def sizes_of(self, name: str) -> Mapping[str, int]:
        return self.places.get(name, {HOST: self.sizes[name]})

    async def footprint(self, model: KnownModel) -> Any:
        return _Footprint(self.sizes_of(model.source), *self.caches.get(model.source, ()))

    async def start(self, model: KnownModel, plan: MemoryPlan) -> StartedModel:
        name = model.source
        assert name not in self.running
        self.running.append(name)
        assert min(self.free_bytes().values()) >= 0, f"{self.running} do not fit"
        try:
            await asyncio.sleep(LOAD_S)
            if name in self.failures:
                raise self.failures[name]
        except BaseException:
            self.running.remove(name)
            raise
        self.started.append(name)
        self.engines[name] = _Engine(self, name, plan)
        return StartedModel(front=None, client=self.engines[name])  # type: ignore[arg-type]

    async def end(self, name: str) -> None:
        await asyncio.sleep(0.1)
        self.running.remove(name)
        self.ended.append(name)

    def files(self, model: KnownModel) -> ModelFiles:
        return ModelFiles(name=model.name, path=Path(model.source), source="test", num_bytes=1, created=0)

    def budget_bytes(self, share: float) -> Free:
        return {device: int(share * size) for device, size in self.free_bytes().items()}

    def free_bytes(self) -> Free:
        return {
            device: (size - sum(self.sizes_of(name).get(device, 0) for name in self.running)) * MIB
            for device, size in self.num_mib.items()
        }


class _Names(ServedNames):
    """Every model of the machine is stored."""

    def __init__(self, root: Path, sizes: Mapping[str, int], named: tuple[NamedModel, ...]) -> None:
        super().__init__(named, Store(root, sources={}, catalogue=()), only_named=False, allow_pull=False)
        self._sizes = sizes

    def find(self, name: str) -> KnownModel:
        try:
            return super().find(name)
        except ModelNotFoundError:
            if name not in self._sizes:
                raise
            return KnownModel(source=name, name=name)


MakePool = Callable[..., tuple[ModelPool, Machine]]


@pytest.fixture
def make_pool(tmp_path: Path) -> MakePool:
    """A pool on a machine of 100 MiB with models a, b and c of 40 MiB each."""

    def make(
        sizes: Mapping[str, int] | None = None,
        num_mib: int = 100,
        gpus: Mapping[str, int] | None = None,
        **settings: Any,
    ) -> tuple[ModelPool, Machine]:
        sizes = sizes or {"a": 40, "b": 40, "c": 40}
        machine = Machine(num_mib, sizes)
        machine.num_mib |= gpus or {}
        chosen = PoolSettings(**{"memory_share": 1.0, **settings})
        return ModelPool(chosen, _Names(tmp_path, sizes, chosen.models), machine, Pulls(1)), machine

    return make


async def ask(pool: ModelPool, name: str, for_s: float = 0.0, **options: Any) -> str:
    async with pool.use(name, **options) as model:
        await asyncio.sleep(for_s)
        return model.name


def test_waiters_share_a_load_and_the_model_stays(make_pool: MakePool) -> None:
    pool, machine = make_pool()

    async def main() -> None:
        assert await asyncio.gather(*(ask(pool, "a") for _ in range(10))) == ["a"] * 10
        assert await ask(pool, "a") == "a"

    run_virtually(main())
    assert machine.started == ["a"]


def test_the_model_used_longest_ago_goes(make_pool: MakePool) -> None:
    pool, machine = make_pool()

    async def main() -> None:
        for name in ("a", "b", "a", "c"):
            await asyncio.sleep(1)
            await ask(pool, name)
        assert [model.name for model in pool.loaded()] == ["a", "c"]

    run_virtually(main())
    assert (machine.started, machine.ended) == (["a", "b", "c"], ["b"])


def test_two_models_share_a_gpu_and_an_idle_one_makes_room(make_pool: MakePool) -> None:
    """There a cache is taken whole when a model is loaded, and none is lent."""
    pool, machine = make_pool({"a": 0, "b": 0, "c": 0}, gpus={"cuda:0": 100})
    machine.places = {name: {"cuda:0": 30, HOST: 1} for name in "abc"}
    machine.caches = dict.fromkeys("abc", (10, 10))

    async def main() -> None:
        await ask(pool, "a")
        await ask(pool, "b")
        assert machine.ended == []
        await asyncio.sleep(1)
        await ask(pool, "c")
        assert cache_mib(pool) == {"b": 10, "c": 10}

    run_virtually(main())
    assert machine.ended == ["a"]


def test_who_goes_has_memory_of_the_device_that_lacks_it(make_pool: MakePool) -> None:
    """Not who was used longest ago, where that lies elsewhere, nor more than must."""
    pool, machine = make_pool(dict.fromkeys("abcdw", 0), gpus=dict.fromkeys(("cuda:0", "cuda:1", "cuda:2"), 100))
    machine.places = {
        "a": {"cuda:0": 60, "cuda:1": 40},
        "b": {HOST: 50},
        "c": {"cuda:2": 90},
        "d": {"cuda:1": 70},
        "w": {"cuda:0": 50, "cuda:1": 10, HOST: 50},
    }

    async def main() -> None:
        for name, gone in (("c", []), ("b", []), ("a", []), ("d", ["a"]), ("w", ["a"]), ("a", ["a", "d", "w"])):
            await ask(pool, name)
            assert sorted(machine.ended) == gone, name
            await asyncio.sleep(1)
        assert {model.name: dict(model.plan.devices) for model in pool.loaded()} == {
            name: {device: size * MIB for device, size in machine.places[name].items()} for name in "cba"
        }

    run_virtually(main())


def test_a_cache_of_the_host_is_left_alone_where_a_gpu_is_what_is_full(make_pool: MakePool) -> None:
    pool, machine = make_pool(dict.fromkeys("abc", 0), gpus={"cuda:0": 100})
    machine.places = {"a": {HOST: 20}, "b": {"cuda:0": 60}, "c": {"cuda:0": 60}}
    machine.caches = {"a": (10, 70)}

    async def main() -> None:
        for name in "abc":
            await ask(pool, name)
            await asyncio.sleep(1)
        assert cache_mib(pool) == {"a": 70, "c": 0}

    run_virtually(main())
    assert machine.ended == ["b"]


def test_no_more_goes_than_must(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 20, "b": 20, "c": 20, "big": 60})

    async def main() -> None:
        for name in ("a", "b", "c", "big"):
            await ask(pool, name)
            await asyncio.sleep(1)

    run_virtually(main())
    assert machine.ended == ["a"]


def cache_mib(pool: ModelPool) -> dict[str, int]:
    return {model.name: model.memory["kv_cache"] // MIB for model in pool.loaded()}


def test_three_models_stay_beside_each_other_with_what_caches_they_need(make_pool: MakePool) -> None:
    """A cache granted to one is taken back for others as far as it is not touched, and given back later."""
    pool, machine = make_pool({"a": 20, "b": 20, "c": 20})
    machine.caches = dict.fromkeys("abc", (10, 70))

    async def main() -> None:
        await ask(pool, "a")
        assert cache_mib(pool) == {"a": 70}
        for name in ("b", "c", "a", "b", "c"):
            await asyncio.sleep(1)
            await ask(pool, name)
        assert cache_mib(pool) == {"a": 10, "b": 10, "c": 20}
        await pool.unload("c")
        await asyncio.sleep(1)
        assert cache_mib(pool) == {"a": 10, "b": 50}
        await pool.unload("b")
        await asyncio.sleep(1)
        assert cache_mib(pool) == {"a": 70}

    run_virtually(main())
    assert (machine.started, machine.ended) == (["a", "b", "c"], ["c", "b"])


def test_cached_prefixes_go_before_a_model_does_and_after_all_that_is_not_used(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 20, "b": 20, "c": 10, "d": 20, "e": 20})
    machine.caches, machine.prefixes = {"a": (10, 30), "b": (0, 20)}, {"a": 10, "b": 10}

    async def loaded(name: str) -> dict[str, int]:
        await asyncio.sleep(1)
        await ask(pool, name)
        await asyncio.sleep(1)
        return cache_mib(pool)

    async def main() -> None:
        assert await loaded("a") == {"a": 30}
        assert await loaded("b") == {"a": 30, "b": 20}
        assert await loaded("c") == {"a": 30, "b": 20, "c": 0}
        assert await loaded("d") == {"a": 20, "b": 10, "c": 0, "d": 0}
        assert await loaded("e") == {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0}
        assert machine.ended == []

    run_virtually(main())


def test_a_cache_is_left_alone_where_the_number_of_models_is_what_is_full(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 20, "b": 20, "c": 20}, max_loaded_models=2)
    machine.caches = {"a": (10, 40)}

    async def main() -> None:
        for name in ("a", "b", "c"):
            await asyncio.sleep(1)
            async with pool.use("a"):
                await ask(pool, name)
            assert cache_mib(pool)["a"] == 40

    run_virtually(main())
    assert machine.ended == ["b"]


def test_a_busy_model_and_a_pinned_one_lend_of_their_caches_too(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 20, "b": 40, "c": 50, "big": 90}, models=(NamedModel("a"),), is_pinned=True)
    machine.caches = {"a": (10, 60)}

    async def main() -> None:
        await pool.start()
        async with pool.use("a"):
            await ask(pool, "b")
        await ask(pool, "c")
        with pytest.raises(InsufficientMemoryError, match="70 may be taken, 1 pinned"):
            await ask(pool, "big")

    run_virtually(main())
    assert machine.running == ["a", "c"]


def test_what_was_taken_back_for_who_left_meanwhile_is_known_and_given_back(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 20, "b": 40, "c": 40}, models=(NamedModel("a"),), is_pinned=True)
    machine.caches = {"a": (10, 60)}

    async def main() -> None:
        await pool.start()
        with pytest.raises(TimeoutError):  # while the cache of a is made smaller
            async with asyncio.timeout(0.005):
                await ask(pool, "b")
        await asyncio.sleep(1)
        assert cache_mib(pool) == {"a": 10}
        await ask(pool, "b")
        await asyncio.sleep(1)
        assert cache_mib(pool) == {"a": 40, "b": 0}  # what b has left over
        await pool.unload("b")
        await asyncio.sleep(1)
        assert cache_mib(pool) == {"a": 60}

    run_virtually(main())


def test_two_waiters_share_one_eviction(make_pool: MakePool) -> None:
    pool, machine = make_pool()

    async def main() -> None:
        await ask(pool, "a")
        await asyncio.sleep(1)
        await ask(pool, "b")
        await asyncio.gather(ask(pool, "c"), ask(pool, "c"))

    run_virtually(main())
    assert (machine.started, machine.ended) == (["a", "b", "c"], ["a"])


def test_busy_models_are_let_finish(make_pool: MakePool) -> None:
    pool, machine = make_pool(num_mib=50)
    order: list[str] = []

    async def work(name: str, for_s: float) -> None:
        async with pool.use(name):
            await asyncio.sleep(for_s)
            assert name in machine.running
            order.append(name)

    async def main() -> None:
        first = asyncio.create_task(work("a", 30))
        await asyncio.sleep(3)
        await asyncio.gather(work("b", 1), first)

    run_virtually(main())
    assert (order, machine.started) == (["a", "b"], ["a", "b"])


def test_a_model_always_in_use_makes_room_in_the_end(make_pool: MakePool) -> None:
    """Requests for it that come after it was asked to leave wait until it is back."""
    pool, machine = make_pool(num_mib=50)

    async def main() -> None:
        async def forever() -> None:
            while True:
                await ask(pool, "a", 1.0)

        busy = [asyncio.create_task(forever()) for _ in range(3)]
        await asyncio.sleep(3.3)
        assert await asyncio.wait_for(ask(pool, "b"), 60) == "b"
        await asyncio.sleep(20)
        assert machine.running == ["a"]
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)

    run_virtually(main())
    assert machine.started == ["a", "b", "a"]


def test_a_waiter_who_gives_up_lets_the_busy_one_stay(make_pool: MakePool) -> None:
    pool, machine = make_pool(num_mib=50, load_timeout_s=20)

    async def main() -> None:
        long = asyncio.create_task(ask(pool, "a", 100))
        await asyncio.sleep(3)
        with pytest.raises(EngineUnavailableError, match="'b' was not loaded within 20 s"):
            await ask(pool, "b")
        assert await asyncio.wait_for(ask(pool, "a"), 0.01) == "a"
        await long

    run_virtually(main())
    assert machine.started == ["a"]


def test_a_waiter_who_gives_up_leaves_an_unload_that_was_asked_for_meanwhile(make_pool: MakePool) -> None:
    pool, machine = make_pool(num_mib=50, load_timeout_s=20)

    async def main() -> None:
        long = asyncio.create_task(ask(pool, "a", 100))
        await asyncio.sleep(3)
        waiting = asyncio.create_task(ask(pool, "b"))
        await asyncio.sleep(15)
        unloading = asyncio.create_task(pool.unload("a"))
        with pytest.raises(EngineUnavailableError, match="'b' was not loaded within 20 s"):
            await waiting
        await long
        await asyncio.wait_for(unloading, 1)

    run_virtually(main())
    assert (machine.started, machine.ended) == (["a"], ["a"])


def test_who_comes_as_the_last_one_waiting_leaves_is_served(make_pool: MakePool) -> None:
    pool, machine = make_pool(num_mib=50)

    async def main() -> None:
        long = asyncio.create_task(ask(pool, "a", 10))
        await asyncio.sleep(3)
        waiting = asyncio.create_task(ask(pool, "b"))
        await asyncio.sleep(1)
        waiting.cancel()
        coming = asyncio.create_task(ask(pool, "b"))  # after the other has left, before its load has ended
        assert await coming == "b"
        await long

    run_virtually(main())
    assert machine.started == ["a", "b"]


def test_a_model_whose_files_are_gone_leaves_nothing_running(make_pool: MakePool, monkeypatch: Any) -> None:
    pool, machine = make_pool()

    def gone(_: KnownModel) -> ModelFiles:
        raise ModelFileError("a: removed")

    async def main() -> None:
        monkeypatch.setattr(machine, "files", gone)
        with pytest.raises(ModelFileError, match="a: removed"):
            await ask(pool, "a")

    run_virtually(main())
    assert machine.running == []


def test_who_leaves_while_waiting_for_room_takes_the_load_along(make_pool: MakePool) -> None:
    pool, machine = make_pool(num_mib=50)

    async def main() -> None:
        long = asyncio.create_task(ask(pool, "a", 50))
        await asyncio.sleep(3)
        waiting = asyncio.create_task(ask(pool, "b"))
        await asyncio.sleep(1)
        waiting.cancel()
        await long
        await asyncio.sleep(10)

    run_virtually(main())
    assert (machine.started, machine.running) == (["a"], ["a"])


def test_who_leaves_while_a_model_is_loading_leaves_it_to_others(make_pool: MakePool) -> None:
    pool, machine = make_pool(keep_alive_s=10.0)

    async def main() -> None:
        first, second = (asyncio.create_task(ask(pool, "a")) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        assert await second == "a"
        third = asyncio.create_task(ask(pool, "b"))
        await asyncio.sleep(1)
        third.cancel()
        await asyncio.sleep(5)
        assert [model.name for model in pool.loaded()] == ["a", "b"]  # begun is finished
        await asyncio.sleep(10)
        assert pool.loaded() == ()

    run_virtually(main())
    assert machine.started == ["a", "b"]


def test_what_never_fits_is_refused_with_numbers_and_nothing_goes(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 40, "huge": 200})

    async def main() -> None:
        await ask(pool, "a")
        with pytest.raises(InsufficientMemoryError, match="needs 200 MiB, 100 may be taken, 0 pinned"):
            await ask(pool, "huge")

    run_virtually(main())
    assert machine.ended == []


def test_a_pinned_model_stays_whatever_comes(make_pool: MakePool) -> None:
    pool, machine = make_pool(models=(NamedModel("a"),), is_pinned=True, num_mib=90)

    async def main() -> None:
        await pool.start()
        for name in ("b", "c", "b"):
            await ask(pool, name, keep_alive_s=0)
        await asyncio.sleep(1e5)
        assert machine.running == ["a"]
        machine.sizes["b"] = 60
        with pytest.raises(InsufficientMemoryError, match="1 pinned"):
            await ask(pool, "b")
        await pool.unload("a")
        assert await ask(pool, "b") == "b"

    run_virtually(main())


def test_at_most_so_many_are_loaded(make_pool: MakePool) -> None:
    pool, machine = make_pool(max_loaded_models=1)

    async def main() -> None:
        await ask(pool, "a")
        await ask(pool, "b")
        await pool.load("b", pin=True)
        with pytest.raises(InsufficientMemoryError, match="max_loaded_models is 1"):
            await ask(pool, "c")

    run_virtually(main())
    assert machine.ended == ["a"]


@pytest.mark.parametrize(("keep_alive_s", "stays_s"), [(0.0, 0.0), (10.0, 10.0), (-1.0, None)])
def test_keep_alive_is_the_last_requests(make_pool: MakePool, keep_alive_s: float, stays_s: float | None) -> None:
    pool, machine = make_pool(keep_alive_s=1000.0)

    async def main() -> None:
        await ask(pool, "a")
        (model,) = pool.loaded()
        assert model.expires_at is not None
        await ask(pool, "a", 2000.0, keep_alive_s=keep_alive_s)
        if stays_s is None:
            assert model.expires_at is None
            await asyncio.sleep(1e5)
            assert machine.running == ["a"]
            return
        if stays_s:
            await asyncio.sleep(stays_s - 0.1)
            assert machine.running == ["a"]
        await asyncio.sleep(0.3)
        assert machine.running == []
        assert await ask(pool, "a") == "a"

    run_virtually(main())


def test_models_named_at_start_stay_until_memory_is_needed(make_pool: MakePool) -> None:
    pool, machine = make_pool(models=(NamedModel("a", ("first", "second")), NamedModel("b")))

    async def main() -> None:
        await pool.start()
        assert [model.name for model in pool.loaded()] == ["first", "b"]
        await asyncio.sleep(1e5)
        assert await asyncio.gather(*(ask(pool, name) for name in ("first", "second", "a", "b"))) == [
            "first",
            "first",
            "first",
            "b",
        ]
        assert machine.started == ["a", "b"]
        await ask(pool, "c")

    run_virtually(main())
    assert len(machine.ended) == 1


def test_a_failed_load_is_told_to_all_and_forgotten(make_pool: MakePool) -> None:
    pool, machine = make_pool()

    async def main() -> None:
        machine.failures["a"] = ModelFileError("a: damaged")
        found = await asyncio.gather(*(ask(pool, "a") for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in found] == ["a: damaged"] * 3
        assert (pool.loaded(), machine.running) == ((), [])
        machine.failures.clear()
        assert await ask(pool, "a") == "a"

    run_virtually(main())


def test_files_that_vanish_while_they_are_loaded_leave_no_engine_behind(make_pool: MakePool) -> None:
    async def scenario() -> None:
        pool, machine = make_pool()
        files, refuse = machine.files, ModelNotFoundError("a: no such file")

        def files_once_started(model: KnownModel) -> ModelFiles:
            if machine.started:
                raise refuse
            return files(model)

        machine.files = files_once_started  # type: ignore[method-assign]
        model = await pool.load("a")
        assert pool.loaded() == (model,)
        await pool.aclose()
        assert (machine.running, machine.ended) == ([], ["a"])

    run_virtually(scenario())


def test_a_load_that_takes_too_long_ends(make_pool: MakePool) -> None:
    pool, machine = make_pool(load_timeout_s=1.0)

    async def main() -> None:
        with pytest.raises(EngineUnavailableError, match="'a' was not loaded within 1 s"):
            await ask(pool, "a")
        await asyncio.sleep(1)
        assert machine.running == []

    run_virtually(main())


def test_unloading_waits_for_requests_and_new_ones_for_it(make_pool: MakePool) -> None:
    pool, machine = make_pool()
    order = []

    async def main() -> None:
        async def first() -> None:
            async with pool.use("a"):
                await asyncio.sleep(5)
                order.append("first")

        running = asyncio.create_task(first())
        await asyncio.sleep(3)
        unloading = asyncio.create_task(pool.unload("a"))
        await asyncio.sleep(0)
        await ask(pool, "a")
        order.append("second")
        await asyncio.gather(running, unloading)
        await pool.unload("a")
        await pool.unload("a")

    run_virtually(main())
    assert order == ["first", "second"]
    assert (machine.started, machine.ended) == (["a", "a"], ["a", "a"])


def test_unloading_at_once_waits_for_nobody(make_pool: MakePool) -> None:
    pool, machine = make_pool()

    async def main() -> None:
        running = asyncio.create_task(ask(pool, "a", 5))
        await asyncio.sleep(3)
        await pool.unload("a", now=True)
        assert machine.running == []
        await running
        loading = asyncio.create_task(ask(pool, "a"))
        await asyncio.sleep(1)
        await pool.unload("a", now=True)
        with pytest.raises(EngineUnavailableError, match="'a' was not loaded: that was stopped"):
            await loading

    run_virtually(main())


def test_only_an_engine_whose_files_are_others_now_is_loaded_anew(make_pool: MakePool) -> None:
    """One that is given up tries by itself; its requests fail meanwhile, which is the engine's to tell."""
    pool, machine = make_pool()

    async def main() -> None:
        await ask(pool, "a")
        machine.engines["a"].give_up()
        assert await ask(pool, "a") == "a"
        assert machine.started == ["a"]
        machine.engines["a"].give_up(is_outdated=True)
        assert await asyncio.gather(ask(pool, "a"), ask(pool, "a")) == ["a", "a"]

    run_virtually(main())
    assert (machine.started, machine.ended) == (["a", "a"], ["a"])


def test_a_pinned_model_stays_pinned_when_it_is_loaded_anew(make_pool: MakePool) -> None:
    pool, machine = make_pool(models=(NamedModel("a"),), is_pinned=True)

    async def main() -> None:
        await pool.start()
        machine.engines["a"].give_up(is_outdated=True)
        for name in "abc":
            assert await ask(pool, name) == name
        assert (machine.started, machine.ended) == (["a", "a", "b", "c"], ["a", "b"])
        await pool.unload("a")
        await ask(pool, "a")
        assert [(model.name, model.is_pinned) for model in pool.loaded()] == [("c", False), ("a", False)]

    run_virtually(main())


def test_the_loss_of_the_last_model_named_at_start_is_told(make_pool: MakePool) -> None:
    pool, machine = make_pool({"a": 20, "b": 20, "c": 20}, models=(NamedModel("a"), NamedModel("b")))

    async def main() -> None:
        await pool.start()
        await ask(pool, "c")
        waiting = asyncio.create_task(pool.all_lost())
        for name in ("c", "a"):
            machine.engines[name].give_up()
            await asyncio.sleep(10)
            assert not waiting.done()
        machine.engines["a"].is_given_up = False  # it came back
        machine.engines["b"].give_up()
        await asyncio.sleep(10)
        assert not waiting.done()
        machine.engines["a"].give_up()
        assert await waiting == ["a", "b"]

    run_virtually(main())


def test_closing_ends_everything(make_pool: MakePool) -> None:
    pool, machine = make_pool()

    async def main() -> None:
        await ask(pool, "a")
        loading = asyncio.create_task(ask(pool, "b"))
        await asyncio.sleep(1)
        await pool.aclose()
        with pytest.raises(EngineUnavailableError, match="'b' was not loaded: that was stopped"):
            await loading
        with pytest.raises(EngineUnavailableError, match="stopping"):
            await ask(pool, "a")

    run_virtually(main())
    assert machine.running == []


def test_an_unknown_name_is_told_what_is_near(make_pool: MakePool) -> None:
    pool, _ = make_pool(models=(NamedModel("smollm"),))

    async def main() -> None:
        for name, hint in (
            ("smolm", "did you mean 'smollm'"),
            ("../etc/passwd", "there are smollm"),
            ("", "there are"),
        ):
            with pytest.raises(ModelNotFoundError, match=hint):
                await ask(pool, name)

    run_virtually(main())


@pytest.mark.parametrize("seed", range(8))
def test_three_models_of_which_two_fit_under_random_traffic(make_pool: MakePool, seed: int) -> None:
    """Nothing fails, memory is never exceeded (Machine asserts it), and models are not swapped for each request."""
    pool, machine = make_pool()
    rng = random.Random(seed)
    num_requests, num_clients = 40, 6
    waits_s: list[float] = []

    async def client() -> None:
        for _ in range(num_requests):
            await asyncio.sleep(rng.expovariate(2))
            name = rng.choice("abc")
            start_s = asyncio.get_running_loop().time()
            async with pool.use(name) as model:
                waits_s.append(asyncio.get_running_loop().time() - start_s)
                assert model.name == name
                await asyncio.sleep(rng.expovariate(1))

    async def main() -> None:
        await asyncio.gather(*(client() for _ in range(num_clients)))

    run_virtually(main())
    assert len(waits_s) == num_requests * num_clients
    assert len(machine.started) <= len(waits_s) / 4
    assert max(waits_s) < 10 * LOAD_S
    assert sum(waits_s) / len(waits_s) < LOAD_S
