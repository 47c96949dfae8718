"""A pull as Ollama's clients are told of it: one status per step and interval, then success."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from tuili.errors import TuiliError
from tuili.runtime.pool.pulls import Pulls
from tuili.store.progress import PullProgress
from tuili.store.store import Store

MayCut = Callable[[Callable[[TuiliError], None]], AbstractContextManager[None]]


async def statuses(
    pulls: Pulls, store: Store, name: str, may_cut: MayCut = lambda _: nullcontext()
) -> AsyncGenerator[dict[str, Any], None]:
    """Raises what Store.pull and Pulls.watch raise, and what cut it. Closing it leaves the pull to others who watch.

    may_cut gets what ends it with an error, for as long as its context lasts.
    """
    name = store.full_name(name)
    async with pulls.watch(name, partial(store.pull, name)) as watch:
        with may_cut(watch.cut):
            async for progress in watch:
                yield _status(progress)
            await watch.end()
    yield {"status": "success"}


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
