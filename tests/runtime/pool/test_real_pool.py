"""Three real models in memory for two: one goes for another and comes back, and nobody's words change."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.pool.memory_plan import HOST, Free
from tuili.runtime.pool.model_host import LocalHost
from tuili.runtime.pool.model_memory import read_footprint
from tuili.runtime.pool.model_pool import ModelPool
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_engine import start_served_model
from tuili.runtime.pool.served_names import ServedNames
from tuili.runtime.pool.settings import NamedModel, PoolSettings
from tuili.runtime.supervision.supervised_engine import RestartPolicy
from tuili.store.store import Store
from tuili.types import GenerateRequest, SamplingParams, TextDelta

LOAD = LoadOptions(max_model_len=256, max_num_seqs=2, kv_cache_memory_bytes=16 << 20)
PATIENT = RestartPolicy(silence_s=120, hang_timeout_s=240)


class CrampedHost(LocalHost):
    """A machine with so much free memory when nothing is loaded."""

    budget = 0

    def free_bytes(self) -> Free:
        return {HOST: self.budget}

    def budget_bytes(self, share: float) -> Free:
        return {HOST: self.budget}


@pytest.fixture
def pool(smollm2_gguf: Path, gemma3_gguf: Path, tmp_path: Path) -> ModelPool:
    """Of `smollm`, `gemma` and `copy`, a copy of the first; the first and `gemma` together just fit."""
    (tmp_path / "copy.gguf").symlink_to(smollm2_gguf)
    paths = {"smollm": smollm2_gguf, "gemma": gemma3_gguf, "copy": tmp_path / "copy.gguf"}
    named = tuple(NamedModel(str(path), (name,)) for name, path in paths.items())
    store = Store(tmp_path / "home")
    settings = PoolSettings(models=named, load=LOAD, memory_share=1.0)
    pulls = Pulls(1)
    host = CrampedHost(settings, store, partial(start_served_model, policy=PATIENT), pulls)
    sizes = [read_footprint(str(paths[name]), store, LOAD, may_cap=False).least() for name in ("smollm", "gemma")]
    host.budget = sum(size.num_bytes for size in sizes) + (8 << 20)
    return ModelPool(settings, ServedNames(named, store, only_named=True, allow_pull=False), host, pulls)


async def _said(pool: ModelPool, name: str, *, seed: int = 3) -> str:
    sampling = SamplingParams(max_tokens=24, temperature=0.8, ignore_eos=True, seed=seed)
    request = GenerateRequest(request_id=f"{name}-{seed}", prompt="The sea is", sampling=sampling)
    async with pool.use(name) as model:
        events = [event async for some in model.front.answer(request, model.client) for event in some]
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_of_three_models_two_fit_and_every_answer_stays_the_same(pool: ModelPool) -> None:
    def loaded() -> list[str]:
        return sorted(model.name for model in pool.loaded())

    try:
        first = {name: await _said(pool, name) for name in ("smollm", "gemma")}
        assert loaded() == ["gemma", "smollm"]
        assert len(set(first.values())) == 2
        assert await _said(pool, "copy") == first["smollm"]  # which has gone for it, as it was used longest ago
        assert loaded() == ["copy", "gemma"]
        # all at once, each of which is answered, though one of them has to come back
        again = await asyncio.gather(*(_said(pool, name) for name in ("copy", "gemma", "smollm")))
        assert again == [first["smollm"], first["gemma"], first["smollm"]]
        assert "smollm" in loaded()
        assert len(loaded()) == 2
    finally:
        await pool.aclose()
    assert pool.loaded() == ()
