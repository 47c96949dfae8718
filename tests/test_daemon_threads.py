"""Blocking work beside an event loop, which waits for it only as long as somebody wants to."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tuili.daemon_threads import in_daemon_thread


async def test_what_the_work_returns_or_raises() -> None:
    assert await in_daemon_thread(lambda: 3, "work") == 3
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0, "work")


def test_a_loop_ends_though_its_work_does_not() -> None:
    go_on = threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_daemon_thread(go_on.wait, "work"), 0.01)

    try:
        asyncio.run(main())
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "work"] == [True]
    finally:
        go_on.set()
