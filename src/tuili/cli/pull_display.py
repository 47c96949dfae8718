"""Shows a pull on stderr: a bar with speed and time left on a terminal, one line per step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tuili.cli.terminal import format_bytes, is_plain, note, one_line
from tuili.store.progress import ProgressCallback, PullProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tuili.store.records import ModelFiles
    from tuili.store.store import Store


def pull_visibly(store: Store, name: str) -> ModelFiles:
    """Pulls a model, showing progress and, in the end, its license."""
    with showing_progress() as progress:
        files = store.pull(name, progress)
    license = files.license or "not stated by its source"
    note(f"{files.name} ({format_bytes(files.num_bytes)}, {files.source}) is stored; license: {license}")
    return files


@contextmanager
def showing_progress() -> Iterator[ProgressCallback]:
    """A callback for pulls that shows what it is told while the context lasts."""
    if is_plain(sys.stderr):
        yield _line_per_step()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _bar_per_step(bars)


def _line_per_step() -> ProgressCallback:
    shown: set[str] = set()

    def show(progress: PullProgress) -> None:
        if progress.step not in shown:
            shown.add(progress.step)
            size = "" if progress.total_bytes is None else f" ({format_bytes(progress.total_bytes)})"
            sys.stderr.write(f"{one_line(progress.step)}{size}\n")

    return show


def _bar_per_step(bars: Progress) -> ProgressCallback:
    tasks: dict[str, TaskID] = {}

    def show(progress: PullProgress) -> None:
        if progress.total_bytes is None and progress.done_bytes == 0:
            bars.console.print(one_line(progress.step), markup=False, highlight=False)
            return
        if progress.step not in tasks:
            tasks[progress.step] = bars.add_task(one_line(progress.step), total=progress.total_bytes)
        bars.update(tasks[progress.step], completed=progress.done_bytes, total=progress.total_bytes)

    return show
