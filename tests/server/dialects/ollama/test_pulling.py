"""A pull told as it goes: steps in order, few lines however many signs of life, and an end when its client leaves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tuili.errors import DownloadError, QueueFullError
from tuili.server.dialects.ollama.pulling import MAX_PULLS, Pull
from tuili.store.progress import ProgressCallback, PullProgress


class ScriptedStore:
    """Pulls as it is told to; `ended` is set when the thread is through."""

    def __init__(self, *signs: PullProgress, error: Exception | None = None, goes_on: bool = False) -> None:
        self.signs, self.error, self.goes_on = signs, error, goes_on
        self.ended = threading.Event()

    def pull(self, name: str, progress: ProgressCallback) -> None:
        try:
            for sign in self.signs:
                progress(sign)
            while self.goes_on:
                progress(self.signs[-1])
            if self.error is not None:
                raise self.error
        finally:
            self.ended.set()


def statuses(store: ScriptedStore) -> Any:
    return Pull(store, "m").statuses()  # type: ignore[arg-type]


async def test_many_signs_make_few_lines() -> None:
    signs = [PullProgress("a.whl", done, 10_000) for done in range(10_001)]
    told = [status async for status in statuses(ScriptedStore(*signs, PullProgress("checking a")))]
    assert told[-3:] == [
        {"status": "pulling a.whl", "digest": "a.whl", "total": 10_000, "completed": 10_000},
        {"status": "checking a"},
        {"status": "success"},
    ]
    assert len(told) < 200


async def test_what_went_wrong_is_raised() -> None:
    told = statuses(ScriptedStore(PullProgress("a"), error=DownloadError("cut")))
    with pytest.raises(DownloadError, match="cut"):
        _ = [status async for status in told]


async def test_a_pull_ends_when_its_client_leaves() -> None:
    store = ScriptedStore(PullProgress("a", 1, 2), goes_on=True)
    told = statuses(store)
    await anext(told)
    await told.aclose()
    assert store.ended.wait(60)


class StalledStore:
    """Pulls nothing until it is let."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def pull(self, name: str, progress: ProgressCallback) -> None:
        progress(PullProgress("a"))
        self.go_on.wait()


def test_pulls_that_stall_hold_up_neither_other_work_nor_the_end() -> None:
    """All that are let in, each of which its client leaves."""
    store = StalledStore()

    async def main() -> None:
        told = [Pull(store, "m").statuses() for _ in range(MAX_PULLS)]  # type: ignore[arg-type]
        for statuses in told:
            await anext(statuses)
        with pytest.raises(QueueFullError, match="16 models are being pulled"):
            await anext(Pull(store, "m").statuses())  # type: ignore[arg-type]
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 3), 60) == 3
        for statuses in told:
            await statuses.aclose()

    rescue = threading.Timer(120, store.go_on.set)
    rescue.start()
    try:
        asyncio.run(main())
        assert not store.go_on.is_set()
    finally:
        rescue.cancel()
        store.go_on.set()
        for thread in threading.enumerate():
            if thread.name == "tuili-pull":
                thread.join()
