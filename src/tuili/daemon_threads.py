"""Blocking work that may take for ever, awaited from an event loop: in threads that nothing waits for, at exit neither.

The event loop's own threads are few, and its end waits for them: nothing that a network or another process can hold up
belongs there. Knows nothing of what it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_daemon_thread(work: Callable[[], Result], name: str) -> asyncio.Future[Result]:
    """What `work` returns or raises, in a thread of its own. Cancelled, it leaves the thread to itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(error: BaseException | None, result: Result | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        error, result = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
