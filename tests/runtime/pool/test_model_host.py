"""A machine's models: what was started and cannot be used ends again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.gguf_models import seeds
from support.small_model import small_front
from tuili.errors import ModelFileError
from tuili.runtime.gpu_memory import GpuMemory
from tuili.runtime.load_options import LoadOptions
from tuili.runtime.pool import model_host
from tuili.runtime.pool.model_host import LocalHost
from tuili.runtime.pool.model_memory import MemoryPlan
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.pool.served_names import KnownModel
from tuili.runtime.pool.settings import NamedModel, PoolSettings
from tuili.runtime.torch_memory import GPU_CONTEXT_BYTES
from tuili.store.store import Store
from tuili.types import GenerateRequest, SamplingParams

PLAN = MemoryPlan(max_model_len=8, kv_cache_bytes=8, weight_bytes=8, workspace_bytes=8)


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


def test_models_on_a_gpu_are_counted_in_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_host, "gpu_memory", lambda device: GpuMemory(700, 1000))
    settings = PoolSettings(load=LoadOptions(backend="torch", device="cuda"))
    host = LocalHost(settings, Store(tmp_path), None, Pulls(1))  # type: ignore[arg-type]
    assert host.free_bytes() == 700
    assert host.budget_bytes(0.9) == 600  # without what others have
    assert host.budget_bytes(0.2) == 0
    on_cpu = LocalHost(PoolSettings(load=LoadOptions(backend="cpu")), Store(tmp_path), None, Pulls(1))  # type: ignore[arg-type]
    assert on_cpu.free_bytes() > 1000


async def test_a_footprint_on_a_gpu_is_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    known = KnownModel(source=str(path), name="tiny", is_named=True)
    load = LoadOptions(backend="torch", device="cuda", max_num_seqs=2)
    plans = []
    for memory in (GpuMemory(8 << 30, 8 << 30), None):
        monkeypatch.setattr(model_host, "gpu_memory", lambda device, memory=memory: memory)
        models = (NamedModel("a"), NamedModel("b"))
        host = LocalHost(PoolSettings(load=load, models=models), Store(tmp_path), None, Pulls(1))  # type: ignore[arg-type]
        footprint = await host.footprint(known)
        plan = footprint.fit(8 << 30)
        assert plan is not None
        plans.append((footprint.cache_share, plan))
    (gpu_share, on_gpu), (_, on_host) = plans
    assert gpu_share == 0.5  # two models are to be there
    assert (on_gpu.is_on_gpu, on_host.is_on_gpu) == (True, False)
    assert on_gpu.other_bytes == GPU_CONTEXT_BYTES
    assert on_gpu.workspace_bytes > on_host.workspace_bytes  # steps are larger
