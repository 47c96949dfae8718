"""How commands talk to people: plain or styled, notes and errors on stderr, sizes and ages in words.

Knows no models.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from tuili.errors import bounded_line

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_AGES = ((31_536_000, "year"), (2_592_000, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute"))


def is_plain(stream: TextIO) -> bool:
    """Whether to write without colours, bars and boxes: no terminal, or the user said so (NO_COLOR, TERM=dumb)."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def is_debugging() -> bool:
    """Whether errors keep their traceback."""
    return os.environ.get("TUILI_DEBUG", "0") not in ("", "0")


def note(message: str) -> None:
    """One line for the person, kept apart from the output."""
    sys.stderr.write(f"note: {one_line(message)}\n")


def report_error(message: str) -> None:
    """The one line a failure shows."""
    sys.stderr.write(f"error: {bounded_line(message).strip()}\n")


@contextmanager
def showing_status() -> Iterator[Callable[[str], None]]:
    """Yields what tells a person at a terminal, on one line of stderr, what takes the time; it is gone at the end."""
    is_shown = not is_plain(sys.stderr)

    def report(message: str) -> None:
        if is_shown:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be cleared
            sys.stderr.write(f"\r\x1b[K{one_line(message)[:width]}")
            sys.stderr.flush()

    try:
        yield report
    finally:
        report("")


def one_line(text: str) -> str:
    """The text without line breaks and control characters, so that no input can paint the terminal."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


def printable(text: str) -> str:
    """The text with control characters other than newline and tab dropped."""
    return "".join(char for char in text if char in "\n\t" or ord(char) >= 160 or 32 <= ord(char) < 127)


def format_bytes(num_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    unit = 0
    while num_bytes >= 1024 and unit < len(_BINARY_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.0f} B" if unit == 0 else f"{num_bytes:.1f} {_BINARY_UNITS[unit]}"


def format_count(count: int) -> str:
    """134515008 -> "134.5M"."""
    for size, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return str(count)


def format_age(seconds: float) -> str:
    """7300 -> "2 hours ago"."""
    for size, unit in _AGES:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns two spaces apart, ending in a newline."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)
