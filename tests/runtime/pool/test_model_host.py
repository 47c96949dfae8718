"""A machine's models: what was started and cannot be used ends again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.small_model import small_front
from tuili.errors import ModelFileError
from tuili.runtime.pool.model_host import LocalHost
from tuili.runtime.pool.model_memory import MemoryPlan
from tuili.runtime.pool.pulls import Pulls
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.pool.served_names import KnownModel
from tuili.runtime.pool.settings import PoolSettings
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
