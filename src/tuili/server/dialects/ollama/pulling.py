"""A pull that is told as it goes: the store's progress, out of its thread, a few times a second."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

from tuili.daemon_threads import in_daemon_thread
from tuili.errors import QueueFullError
from tuili.store.progress import PullProgress
from tuili.store.store import Store

INTERVAL_S = 0.1
MAX_PULLS = 16  # a thread each
_places = threading.BoundedSemaphore(MAX_PULLS)


class _LeftError(Exception):
    """Nobody waits for the pull any more."""


class Pull:
    """One client's pull. What it has fetched stays for the next one when it is left half-way."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._latest: dict[str, PullProgress] = {}  # by step, in the order they began
        self._has_news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._is_left = False

    async def statuses(self) -> AsyncGenerator[dict[str, Any], None]:
        """One status per step and interval, then success. Raises what Store.pull raises.

        Closing it ends the pull at its next sign of life.
        """
        if not _places.acquire(blocking=False):
            raise QueueFullError(f"{MAX_PULLS} models are being pulled: wait for one of them", retry_after_s=10)
        work = in_daemon_thread(self._run, "tuili-pull")
        work.add_done_callback(lambda _: self._has_news.set())
        try:
            while not work.done():
                await self._has_news.wait()
                self._has_news.clear()
                for status in self._news():
                    yield status
                if not work.done():
                    await asyncio.wait([work], timeout=INTERVAL_S)
            await work
            for status in self._news():
                yield status
            yield {"status": "success"}
        finally:
            self._is_left = True
            work.add_done_callback(lambda task: task.cancelled() or task.exception())  # told, or nobody is left

    def _run(self) -> None:
        try:
            self._store.pull(self._name, self._note)
        finally:
            _places.release()

    def _note(self, progress: PullProgress) -> None:
        """In the pull's thread."""
        if self._is_left:
            raise _LeftError
        self._loop.call_soon_threadsafe(self._take, progress)

    def _take(self, progress: PullProgress) -> None:
        self._latest[progress.step] = progress
        self._has_news.set()

    def _news(self) -> list[dict[str, Any]]:
        latest, self._latest = self._latest, {}
        return [_status(progress) for progress in latest.values()]


def _status(progress: PullProgress) -> dict[str, Any]:
    """Bytes of a step are told under its name, by which clients tell steps apart."""
    if progress.total_bytes is None:
        return {"status": progress.step}
    return {
        "status": f"pulling {progress.step}",
        "digest": progress.step,
        "total": progress.total_bytes,
        "completed": progress.done_bytes,
    }
