"""A machine's models: what was started and cannot be used ends again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuili.errors import ModelFileError
from tuili.runtime.model_host import LocalHost
from tuili.runtime.model_memory import MemoryPlan
from tuili.runtime.model_pool_settings import PoolSettings
from tuili.runtime.served_model import StartedModel
from tuili.runtime.served_names import KnownModel
from tuili.store.store import Store


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
    host = LocalHost(PoolSettings(), Store(tmp_path), start_model)
    monkeypatch.setattr(host, "_set_up", refuse)
    plan = MemoryPlan(max_model_len=8, kv_cache_bytes=8, weight_bytes=8, workspace_bytes=8)
    with pytest.raises(ModelFileError):
        await host.start(KnownModel(source=str(tmp_path / "a.gguf"), name="a"), plan)
    assert engine.is_closed
