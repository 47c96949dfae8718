"""A pull as Ollama's clients are told of it."""

from __future__ import annotations

import pytest

from tuili.errors import DownloadError
from tuili.runtime.pool.pulls import Pulls
from tuili.server.dialects.ollama.pulling import statuses
from tuili.store.progress import ProgressCallback, PullProgress


class ScriptedStore:
    """Pulls as it is told to."""

    def __init__(self, *signs: PullProgress, error: Exception | None = None) -> None:
        self.signs, self.error = signs, error

    def full_name(self, name: str) -> str:
        return f"{name}:1b"

    def pull(self, name: str, progress: ProgressCallback) -> None:
        assert name == "m:1b"
        for sign in self.signs:
            progress(sign)
        if self.error is not None:
            raise self.error


async def test_steps_with_sizes_are_told_under_their_names() -> None:
    store = ScriptedStore(PullProgress("a.whl", 7, 7), PullProgress("checking a"))
    assert [status async for status in statuses(Pulls(1), store, "m")] == [  # type: ignore[arg-type]
        {"status": "pulling a.whl", "digest": "a.whl", "total": 7, "completed": 7},
        {"status": "checking a"},
        {"status": "success"},
    ]


async def test_what_went_wrong_is_raised() -> None:
    told = statuses(Pulls(1), ScriptedStore(PullProgress("a"), error=DownloadError("cut")), "m")  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match="cut"):
        _ = [status async for status in told]
