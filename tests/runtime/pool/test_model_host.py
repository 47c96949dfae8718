"""A machine's models: what was started and cannot be used ends again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.gguf_models import seeds
from support.small_model import small_front
from tuili.errors import ModelFileError
from tuili.runtime.devices.gpu_memory import GpuMemory
from tuili.runtime.devices.torch_memory import GPU_CONTEXT_BYTES
from tuili.runtime.loading.load_options import LoadOptions
from tuili.runtime.pool import model_host
from tuili.runtime.pool.memory_plan import HOST, DevicePart, MemoryPlan
from tuili.runtime.pool.model_host import LocalHost
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.pool.served_names import KnownModel
from tuili.runtime.pool.settings import NamedModel, PoolSettings
from tuili.store.store import Store
from tuili.types import GenerateRequest, SamplingParams

PART = DevicePart(device=HOST, weights=8, kv_cache=8, workspace=8)
PLAN = MemoryPlan(max_model_len=8, cache_bytes=8, parts=(PART,))


class _Engine:
    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


async def test_an_engine_whose_text_side_cannot_be_set_up_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _Engine()

    async def start_model(*_: Any) -> StartedModel:
        return StartedModel(front=None, client=engine)  # type: ignore[arg-type]

    def refuse(*_: Any) -> None:
        raise ModelFileError("no")

    (tmp_path / "a.gguf").touch()
    host = LocalHost(PoolSettings(), Store(tmp_path), start_model, Pulls(1))
    monkeypatch.setattr(host, "_set_up", refuse)
    with pytest.raises(ModelFileError):
        await host.start(KnownModel(source=str(tmp_path / "a.gguf"), name="a"), PLAN)
    assert engine.is_closed


async def test_templates_are_told_what_the_server_s_owner_says_unless_a_request_does(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    template = "{{ tone }} {{ messages[0].content }}"

    async def start_model(*_: Any) -> StartedModel:
        return StartedModel(front=small_front(template=template), client=_Engine())  # type: ignore[arg-type]

    host = LocalHost(PoolSettings(default_template_args={"tone": "calm"}), Store(tmp_path), start_model, Pulls(1))
    started = await host.start(KnownModel(source=str(tmp_path / "a.gguf"), name="a"), PLAN)
    asked = GenerateRequest(
        request_id="r", sampling=SamplingParams(), messages=({"role": "user", "content": "hi"},), template_args={}
    )
    assert str(started.front.render(asked)) == "calm hi"
    assert str(started.front.render(replace(asked, template_args={"tone": "loud"}))) == "loud hi"


def host_of(tmp_path: Path, load: LoadOptions, **settings: Any) -> LocalHost:
    return LocalHost(PoolSettings(load=load, **settings), Store(tmp_path), None, Pulls(1))  # type: ignore[arg-type]


def test_models_on_gpus_are_counted_in_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU that a process of any engine is on, by the numbers that torch has for them."""
    sizes = {f"cuda:{i}": GpuMemory(700 - 100 * i, 1000) for i in range(5)}
    monkeypatch.setattr(model_host, "gpu_memory", sizes.get)
    monkeypatch.setattr(model_host, "available_memory", lambda: 5000)
    load = LoadOptions(backend="torch", device="cuda")
    alone = host_of(tmp_path, load)
    assert alone.free_bytes() == {HOST: 5000, "cuda:0": 700}
    assert alone.budget_bytes(0.9) == {HOST: 4500, "cuda:0": 600}  # without what others have
    assert alone.budget_bytes(0.2) == {HOST: 1000, "cuda:0": 0}
    shared = host_of(tmp_path, replace(load, device="cuda:1", pipeline_parallel_size=2), num_replicas=2)
    assert shared.free_bytes() == {HOST: 5000, "cuda:1": 600, "cuda:2": 500, "cuda:3": 400, "cuda:4": 300}
    assert shared.budget_bytes(0.9)["cuda:4"] == 200
    beyond = host_of(tmp_path, replace(load, tensor_parallel_size=6))  # which starting one will refuse
    on_cpu = host_of(tmp_path, LoadOptions(backend="cpu"))
    in_torch = host_of(tmp_path, LoadOptions(backend="torch", device="cpu"))
    elsewhere = host_of(tmp_path, LoadOptions(backend="torch", device="xpu"))
    assert [host.free_bytes() for host in (beyond, on_cpu, in_torch, elsewhere)] == [{HOST: 5000}] * 4


async def test_a_footprint_on_a_gpu_is_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    known = KnownModel(source=str(path), name="tiny", is_named=True)
    load = LoadOptions(backend="torch", device="cuda", max_num_seqs=2)
    plans = []
    for memory in (GpuMemory(8 << 30, 8 << 30), None):
        monkeypatch.setattr(model_host, "gpu_memory", lambda device, memory=memory: memory)
        footprint = await host_of(tmp_path, load, models=(NamedModel("a"), NamedModel("b"))).footprint(known)
        plan = footprint.fit({"cuda:0": 8 << 30, HOST: 8 << 30})
        assert plan is not None
        plans.append((footprint.cache_share, plan))
    (gpu_share, on_gpu), (_, on_host) = plans
    assert gpu_share == 0.5  # two models are to be there
    assert (on_gpu.is_on_gpu, on_host.is_on_gpu) == (True, False)
    gpu, host = on_gpu.parts
    assert gpu.other == GPU_CONTEXT_BYTES
    assert (host.weights, host.kv_cache) == (0, 0)
    assert host.other == on_host.by_kind()["other"]  # the processes


async def test_a_model_beside_another_has_its_layers_on_the_gpu_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has no room, the other one goes: only what is larger than an empty GPU has layers on the CPU."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    known = KnownModel(source=str(path), name="tiny", is_named=True)
    load = LoadOptions(backend="torch", device="cuda", max_num_seqs=2)
    found = []
    for free_first, free_later in ((2 << 30, 2 << 30), (2 << 30, 100), (GPU_CONTEXT_BYTES + (400 << 20), 100)):
        monkeypatch.setattr(model_host, "gpu_memory", lambda _, free=free_first: GpuMemory(free, 2 << 30))
        host = host_of(tmp_path, load, memory_share=1.0)
        monkeypatch.setattr(model_host, "gpu_memory", lambda _, free=free_later: GpuMemory(free, 2 << 30))
        found.append((await host.footprint(known)).parts)
    assert found[0] == found[1] == found[2]
    tight = GPU_CONTEXT_BYTES + found[0][0].weight_bytes // 2
    monkeypatch.setattr(model_host, "gpu_memory", lambda _: GpuMemory(tight, 2 << 30))
    gpu, on_host = (await host_of(tmp_path, load, memory_share=1.0).footprint(known)).parts
    assert gpu.weight_bytes < found[0][0].weight_bytes
    assert on_host.weight_bytes > 0


async def test_each_engine_gets_the_cache_that_was_planned(tmp_path: Path) -> None:
    """Not what all of them take together."""
    (tmp_path / "a.gguf").touch()
    given: list[LoadOptions] = []

    async def start_model(source: str, path: Path, options: LoadOptions) -> StartedModel:
        given.append(options)
        return StartedModel(front=small_front(), client=_Engine())  # type: ignore[arg-type]

    host = LocalHost(PoolSettings(num_replicas=2), Store(tmp_path), start_model, Pulls(1))
    plan = replace(PLAN, cache_bytes=4)
    await host.start(KnownModel(source=str(tmp_path / "a.gguf"), name="a"), plan)
    assert (given[0].kv_cache_memory_bytes, given[0].max_model_len) == (4, 8)
