"""Finds a model's files by name, fetching what is missing: with progress bars, and its license in the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Never

from tuili.config import store_dir
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.store.progress import ProgressCallback, PullProgress, ignore_progress
from tuili.store.store import Store


def find_model(name: str, store: Store | None = None, note: ProgressCallback = ignore_progress) -> Path:
    """The files of a stored name or a path; a name that a source offers is fetched, as `note` is told.

    None is the user's store.

    Raises ModelNotFoundError, DownloadError, InvalidRequestError, ModelFileError.
    """
    store = store or Store(store_dir())
    try:
        return store.path(name)
    except ModelNotFoundError as missing:
        try:
            with _bars(note) as progress:
                files = store.pull(store.base_name(name), progress)
        except (InvalidRequestError, ModelNotFoundError):
            raise missing from None
    sys.stderr.write(f"{files.name} is stored; license: {files.license or 'not stated'}\n")
    return files.path


@contextmanager
def _bars(note: ProgressCallback) -> Iterator[ProgressCallback]:
    """One bar for each step whose size is known. tqdm is imported here: models that are stored do not need it."""
    from tqdm import tqdm

    bars: dict[str, tqdm[Never]] = {}

    def show(progress: PullProgress) -> None:
        note(progress)
        if progress.total_bytes is None:
            return
        if progress.step not in bars:
            bar = tqdm(total=progress.total_bytes, desc=progress.step, unit="B", unit_scale=True)
            bars[progress.step] = stack.enter_context(bar)
        bars[progress.step].update(progress.done_bytes - bars[progress.step].n)

    with ExitStack() as stack:
        yield show
