"""Pulls that are watched by many, left by all, and bounded in number."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import pytest

from tuili.errors import DownloadError, QueueFullError
from tuili.runtime.pool.pulls import Pulls
from tuili.store.progress import ProgressCallback, PullProgress


class Script:
    """Work that tells `signs` and then waits to be let go on; `started` counts its threads, `ended` those through."""

    def __init__(self, *signs: PullProgress, error: Exception | None = None) -> None:
        self.signs, self.error = signs, error
        self.go_on = threading.Event()
        self.started = 0
        self.ended = threading.Semaphore(0)

    def __call__(self, note: ProgressCallback) -> None:
        self.started += 1
        try:
            for sign in self.signs:
                note(sign)
            assert self.go_on.wait(60)
            note(PullProgress("checking"))
            if self.error is not None:
                raise self.error
        finally:
            self.ended.release()


async def steps(pulls: Pulls, work: Callable[[ProgressCallback], None], name: str = "m") -> list[PullProgress]:
    async with pulls.watch(name, work) as watch:
        seen = [progress async for progress in watch]
        await watch.end()
        return seen


async def test_many_who_ask_share_one_pull_and_who_comes_late_sees_where_it_is() -> None:
    pulls, work = Pulls(1), Script(PullProgress("a", 1, 3), PullProgress("a", 2, 3), PullProgress("b", 1, 9))
    first = asyncio.create_task(steps(pulls, work))
    async with pulls.watch("m", work) as watch:
        async for progress in watch:
            if progress.step == "b":
                break
    late = [asyncio.create_task(steps(pulls, work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.go_on.set()
    for seen in await asyncio.gather(first, *late):
        assert [progress for progress in seen if progress.step != "a"] == [
            PullProgress("b", 1, 9),
            PullProgress("checking"),
        ]
        assert [progress for progress in seen if progress.step == "a"][-1] == PullProgress("a", 2, 3)
    assert work.started == 1
    again = Script()
    again.go_on.set()
    assert await steps(pulls, again) == [PullProgress("checking")]  # a pull that has ended is over


async def test_its_failure_is_told_to_all_and_forgotten() -> None:
    pulls, work = Pulls(1), Script(error=DownloadError("cut"))
    both = [asyncio.create_task(steps(pulls, work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.go_on.set()
    for task in both:
        with pytest.raises(DownloadError, match="cut"):
            await task
    work.error = None
    assert await steps(pulls, work) == [PullProgress("checking")]


async def test_one_that_gets_no_thread_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pulls, work = Pulls(1), Script()
    work.go_on.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="thread"):
                await steps(pulls, work)
    assert await steps(pulls, work) == [PullProgress("checking")]


async def test_a_pull_goes_on_for_who_stays_and_ends_when_all_have_left() -> None:
    pulls, work = Pulls(1), Script(PullProgress("a"))
    first, second = (asyncio.create_task(steps(pulls, work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    work.go_on.set()
    assert PullProgress("checking") in await second
    left = Script(PullProgress("a"))
    third = asyncio.create_task(steps(pulls, left))
    await asyncio.sleep(0)
    third.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await third
    left.go_on.set()
    assert await asyncio.to_thread(left.ended.acquire, timeout=60)


async def test_who_asks_for_what_was_just_left_is_served() -> None:
    """Whether or not the pull has noticed that it was left."""
    for notices in (False, True):
        pulls, work = Pulls(2), Script(PullProgress("a"))
        async with pulls.watch("m", work) as watch:
            await anext(aiter(watch))
        if notices:
            work.go_on.set()
            assert await asyncio.to_thread(work.ended.acquire, timeout=60)
        again = asyncio.create_task(steps(pulls, work))
        await asyncio.sleep(0)
        work.go_on.set()
        assert (await again)[-1] == PullProgress("checking")
        assert work.started == 1 + notices


def test_so_many_at_once_and_those_that_stall_hold_up_neither_other_work_nor_the_end() -> None:
    stalled = Script(PullProgress("a"))

    async def main() -> None:
        pulls = Pulls(2)
        async with pulls.watch("a", stalled), pulls.watch("b", stalled):
            with pytest.raises(QueueFullError, match="2 models are being pulled"):
                await steps(pulls, stalled, "c")
            async with pulls.watch("a", stalled):  # shared, so it takes no place
                pass
            assert await asyncio.wait_for(asyncio.to_thread(lambda: 3), 60) == 3
        with pytest.raises(QueueFullError):  # those that were left have not noticed it
            await steps(pulls, stalled, "c")

    try:
        asyncio.run(main())
        assert not stalled.go_on.is_set()
    finally:
        stalled.go_on.set()
        for thread in threading.enumerate():
            if thread.name == "tuili-pull":
                thread.join()


async def test_many_signs_make_few_looks() -> None:
    work = Script(*(PullProgress("a", done, 10_000) for done in range(10_001)))
    work.go_on.set()
    seen = await steps(Pulls(1), work)
    assert seen[-2:] == [PullProgress("a", 10_000, 10_000), PullProgress("checking")]
    assert len(seen) < 200
