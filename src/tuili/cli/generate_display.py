"""Shows how far a job is on stderr: a bar with the time left at a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tuili.cli.terminal import is_plain, note, one_line
from tuili.runtime.jobs.runner import FinishedRow, JobProgress, Show

LINE_INTERVAL_S = 1.0


@contextmanager
def showing(progress: JobProgress, *, is_quiet: bool, is_verbose: bool = False) -> Iterator[Show]:
    """What to call as rows finish. Failures are told in any manner, and even when quiet; is_verbose is a line a row."""
    if is_quiet:
        yield _tell_failure
    elif is_verbose or is_plain(sys.stderr):
        yield _Lines(0.0 if is_verbose else LINE_INTERVAL_S)
    else:
        with _bar(progress) as show:
            yield show


def summary(progress: JobProgress) -> str:
    """What the run did, in one line."""
    num_answers, elapsed_s = progress.num_done - progress.num_failed, progress.elapsed_s
    text = f"{num_answers} rows answered in {format_seconds(elapsed_s)}"
    if num_answers:
        text += (
            f", {elapsed_s / num_answers:.2f} s a row; {progress.num_output_tokens} tokens, {_speed(progress)}; "
            f"an answer took {progress.answer_s / num_answers:.2f} s on average from its first token to its last, "
            f"{progress.slowest_s:.2f} s at most"
        )
    return text


def format_seconds(seconds: float) -> str:
    """75.3 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _tell_failure(_: JobProgress, finished: FinishedRow | None) -> None:
    if finished is not None and finished.error is not None:
        note(f"row {finished.row_id!r:.80} failed: {finished.error:.400}")


class _Lines:
    """The latest row, not more often than the interval says, and the last one."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._shown_s = -interval_s

    def __call__(self, progress: JobProgress, finished: FinishedRow | None) -> None:
        _tell_failure(progress, finished)
        is_last = progress.num_kept + progress.num_done == progress.num_rows
        now = time.monotonic()
        if finished is None or finished.error is not None or (now - self._shown_s < self._interval_s and not is_last):
            return
        self._shown_s = now
        done = progress.num_kept + progress.num_done
        left = "" if is_last else f", {format_seconds(progress.left_s or 0.0)} left"
        sys.stderr.write(
            f"{done}/{progress.num_rows}  {one_line(finished.row_id):.80}: {finished.num_tokens} tokens in "
            f"{finished.decode_s:.2f} s; {_speed(progress)}{left}\n"
        )
        sys.stderr.flush()


@contextmanager
def _bar(progress: JobProgress) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        TextColumn("{task.fields[latest]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        task = bars.add_task("", total=progress.num_rows, completed=progress.num_kept, left="", speed="", latest="")

        def show(progress: JobProgress, finished: FinishedRow | None) -> None:
            _tell_failure(progress, finished)
            fields: dict[str, Any] = {"speed": _speed(progress)}
            if progress.left_s is not None:
                fields["left"] = f"{format_seconds(progress.left_s)} left"
            if finished is not None:
                fields["latest"] = f"last {finished.decode_s:.2f} s"
            bars.update(task, completed=progress.num_kept + progress.num_done, **fields)

        yield show


def _speed(progress: JobProgress) -> str:
    elapsed_s = progress.elapsed_s
    return f"{progress.num_output_tokens / elapsed_s:.1f} tokens/s" if elapsed_s > 0 else "- tokens/s"
