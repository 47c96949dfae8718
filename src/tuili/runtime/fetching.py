"""Finds a model's files by name, fetching what is missing: with progress bars, and its licence in the end."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Never

from tqdm import tqdm

from tuili.config import store_dir
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.store.progress import PullProgress
from tuili.store.store import Store


def find_model(name: str, store: Store | None = None) -> Path:
    """The files of a stored name or a path; a name that a source offers is fetched. None is the user's store.

    Raises ModelNotFoundError, DownloadError, InvalidRequestError, ModelFileError.
    """
    store = store or Store(store_dir())
    try:
        return store.path(name)
    except ModelNotFoundError as missing:
        try:
            return _pull(store, name)
        except (InvalidRequestError, ModelNotFoundError):
            raise missing from None


def _pull(store: Store, name: str) -> Path:
    with ExitStack() as stack:
        files = store.pull(name, _Bars(stack))
    tqdm.write(f"{files.name} is stored; licence: {files.licence or 'not stated'}", file=sys.stderr)
    return files.path


class _Bars:
    """One bar for each step whose size is known; closed with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bars: dict[str, tqdm[Never]] = {}

    def __call__(self, progress: PullProgress) -> None:
        if progress.total_bytes is None:
            return
        if progress.step not in self._bars:
            bar = tqdm(total=progress.total_bytes, desc=progress.step, unit="B", unit_scale=True)
            self._bars[progress.step] = self._stack.enter_context(bar)
        bar = self._bars[progress.step]
        bar.update(progress.done_bytes - bar.n)
