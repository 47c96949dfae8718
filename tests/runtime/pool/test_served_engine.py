"""A model that is started for a pool: what must be fetched first holds up nobody."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tuili.config import SpeculativeConfig
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.pool import served_engine


def test_a_draft_model_that_is_being_fetched_holds_up_neither_other_work_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, has_begun = threading.Event(), threading.Event()

    def fetch(options: LoadOptions) -> LoadOptions:
        has_begun.set()
        assert go_on.wait(60)
        return options

    monkeypatch.setattr(served_engine, "named_by_path", fetch)
    options = LoadOptions(speculative=SpeculativeConfig(method="draft_model", model="org/draft"))

    async def main() -> None:
        starting = asyncio.create_task(served_engine.start_served_model("m", Path("m.gguf"), options))
        while not has_begun.is_set():
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])

    try:
        asyncio.run(main())  # which would wait for a thread of the event loop's
        assert not go_on.is_set()
    finally:
        go_on.set()
