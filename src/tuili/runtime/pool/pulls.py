"""The pulls that a server has under way: one for a model, however many watch it, and no more than so many at once.

Each runs in a thread of its own that nothing waits for, and ends at its next sign of life when nobody watches any
more; what it has fetched stays for the next. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tuili.daemon_threads import in_daemon_thread
from tuili.errors import QueueFullError, TuiliError
from tuili.store.progress import ProgressCallback, PullProgress

INTERVAL_S = 0.1  # between two looks of a watcher
_RETRY_S = 10.0

Work = Callable[[ProgressCallback], object]


class Pulls:
    """Who pulls what."""

    def __init__(self, max_pulls: int) -> None:
        self._max_pulls = max_pulls
        self._pulls: dict[str, _Pull] = {}
        self._num_running = 0  # threads, those among them that were left and have not noticed it

    @asynccontextmanager
    async def watch(self, name: str, work: Work) -> AsyncIterator[Watch]:
        """The pull of that name; where there is none, `work` is begun. Raises QueueFullError when too many run."""
        pull = self._pulls.get(name)
        watch = None if pull is None else pull.join()
        if pull is None or watch is None:
            pull, watch = self._begin(name, work)
        try:
            yield watch
        finally:
            pull.leave(watch)

    def _begin(self, name: str, work: Work) -> tuple[_Pull, Watch]:
        if self._num_running >= self._max_pulls:
            raise QueueFullError(
                f"{self._max_pulls} models are being pulled: wait for one of them", retry_after_s=_RETRY_S
            )
        pull = _Pull()
        watch = pull.begin(work)  # raises when there is no thread to be had
        self._num_running += 1
        self._pulls[name] = pull

        def end(_: object) -> None:
            self._num_running -= 1
            if self._pulls.get(name) is pull:
                del self._pulls[name]

        pull.work.add_done_callback(end)
        return pull, watch


class Watch:
    """One who watches a pull: what has come of each step since last asked, and how it ended."""

    def __init__(self, work: asyncio.Future[object], so_far: dict[str, PullProgress]) -> None:
        self._work = work
        self._news = so_far
        self._has_news = asyncio.Event()
        self._has_news.set()
        self._cut_by: TuiliError | None = None
        work.add_done_callback(lambda _: self._has_news.set())

    async def __aiter__(self) -> AsyncIterator[PullProgress]:
        """The latest of each step, not more often than every INTERVAL_S, until the pull ends."""
        while not self._work.done():
            await self._has_news.wait()
            self._has_news.clear()
            if self._cut_by is not None:
                raise self._cut_by
            for progress in self._take():
                yield progress
            await asyncio.wait([self._work], timeout=INTERVAL_S)
        for progress in self._take():
            yield progress

    def cut(self, error: TuiliError) -> None:
        """Ends the watch, with that error, before the pull has ended."""
        self._cut_by = error
        self._has_news.set()

    async def end(self) -> None:
        """Waits for the pull's end. Raises what it raised."""
        await asyncio.shield(self._work)

    def put(self, progress: PullProgress) -> None:
        self._news[progress.step] = progress
        self._has_news.set()

    def _take(self) -> list[PullProgress]:
        news, self._news = self._news, {}
        return list(news.values())


class _LeftError(Exception):
    """Nobody watches the pull any more."""


class _Pull:
    """A pull and who watches it."""

    work: asyncio.Future[object]

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: dict[str, PullProgress] = {}  # by step, in the order they began
        self._watches: set[Watch] = set()
        self._has_ended = False
        self._lock = threading.Lock()  # over these two, which the thread reads

    def begin(self, work: Work) -> Watch:
        with self._lock:  # until it is watched, the thread gives no sign
            self.work = in_daemon_thread(lambda: work(self._note), "tuili-pull")
            self.work.add_done_callback(lambda task: task.cancelled() or task.exception())  # told, or nobody is left
            watch = Watch(self.work, {})
            self._watches.add(watch)
            return watch

    def join(self) -> Watch | None:
        """One more who watches; None when the pull ends as nobody did."""
        with self._lock:
            if self._has_ended:
                return None
            watch = Watch(self.work, dict(self._latest))
            self._watches.add(watch)
            return watch

    def leave(self, watch: Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _note(self, progress: PullProgress) -> None:
        """In the pull's thread."""
        with self._lock:
            self._has_ended = not self._watches
            if self._has_ended:
                raise _LeftError
        self._loop.call_soon_threadsafe(self._take, progress)

    def _take(self, progress: PullProgress) -> None:
        self._latest[progress.step] = progress
        for watch in self._watches:
            watch.put(progress)
