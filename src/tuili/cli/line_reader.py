"""Reads what a person types in a chat: one line, or several between triple quotes, with history. Knows no commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

PROMPT, CONTINUATION = ">>> ", "... "
QUOTES = '"""'
_HISTORY_LINES = 1000


def read_entry(read_line: Callable[[str], str] = input) -> str:
    """One entry without its quotes. Raises EOFError at the end of input and KeyboardInterrupt on Ctrl-C."""
    line = read_line(PROMPT)
    if not line.lstrip().startswith(QUOTES):
        return line.strip()
    lines = [line.lstrip().removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read_line(CONTINUATION))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


@contextlib.contextmanager
def line_history(path: Path) -> Iterator[None]:
    """Line editing with a history kept in `path`; without either where the platform or the disk has none."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
