"""Reads what a person types in a chat: one line or several, with history. Knows no commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

PROMPT, CONTINUATION = ">>> ", "... "
QUOTES = '"""'
_HISTORY_LINES = 1000


def read_entry(read_line: Callable[[str], str] = input) -> str:
    """One entry: a line, lines that end in a backslash and the one behind them, or lines between triple quotes.

    Raises EOFError at the end of input and KeyboardInterrupt on Ctrl-C.
    """
    line = read_line(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return _between_quotes(line.lstrip().removeprefix(QUOTES), read_line)
    lines = [line]
    while _goes_on(lines[-1]):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(CONTINUATION))
    return "\n".join(lines).strip()


def _between_quotes(first: str, read_line: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read_line(CONTINUATION))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def _goes_on(line: str) -> bool:
    """Whether it ends in a backslash that no other one makes an ordinary character."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def keep_history(wanted: bool) -> None:
    """Whether lines typed from now on go into the history."""
    with contextlib.suppress(ImportError):
        import readline

        readline.set_auto_history(wanted)


@contextlib.contextmanager
def line_history(path: Path) -> Iterator[None]:
    """Line editing with a history kept in `path`, for its owner alone; without either where the platform has none.

    With TUILI_NOHISTORY set nothing is read or kept.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    is_kept = os.environ.get("TUILI_NOHISTORY", "0") in ("", "0")
    keep_history(is_kept)
    if is_kept:
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        if is_kept:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
                path.chmod(0o600)
                readline.write_history_file(path)
