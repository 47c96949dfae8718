"""Text that stays on a terminal's screen: drawn again as time goes by and as the window changes, gone at a key.

Knows terminals, not what is shown.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # a screen of its own without cursor, and back
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_LEAVING = frozenset(b"qQ\x1b\x03\x04")


def show_live(draw: Callable[[], str], interval_s: float) -> None:
    """Shows what `draw` gives, anew every interval_s, until q is typed. Raises what `draw` raises, the screen restored.

    What is larger than the window is cut.
    """
    with _own_screen(), _window_changes() as changes:
        while True:
            text, due_s = draw(), time.monotonic() + interval_s
            _paint(text)
            while (left_s := due_s - time.monotonic()) > 0:
                ready, _, _ = select.select([sys.stdin, changes], [], [], left_s)
                if sys.stdin in ready and _LEAVING.intersection(os.read(sys.stdin.fileno(), 64) or b"q"):
                    return
                if changes in ready:
                    os.read(changes, 64)
                    _paint(text)


def can_show_live() -> bool:
    """Whether keys and the screen are one terminal's that knows how."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _paint(text: str) -> None:
    columns, rows = _window_size()
    lines = [line[:columns] for line in text.splitlines()[:rows]]
    body = f"{_END_OF_LINE}\n".join(lines)
    sys.stdout.write(f"{_HOME}{body}{_END_OF_LINE}{_END_OF_SCREEN}")
    sys.stdout.flush()


def _window_size() -> tuple[int, int]:
    """Columns and rows as they are now; exported COLUMNS and LINES would be those of some time ago."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns or 80, size.lines or 24


@contextmanager
def _own_screen() -> Iterator[None]:
    """Keys come one by one and unseen, Ctrl-C among them; afterwards everything is as it was."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _window_changes() -> Iterator[int]:
    """A descriptor that can be read whenever the window has another size."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handled_before = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield reading
    finally:
        signal.signal(signal.SIGWINCH, handled_before)
        signal.set_wakeup_fd(woken_before)
        os.close(reading)
        os.close(writing)
