"""Text that stays on a terminal's screen: drawn again as time goes by and as the window changes, gone at a key
and while the program is stopped.

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
from contextlib import contextmanager, suppress

_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"  # a screen of its own without cursor, and back
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_LEAVING = frozenset(b"qQ\x1b\x03\x04")


def show_live(draw: Callable[[], str], interval_s: float) -> None:
    """Shows what `draw` gives, anew every interval_s, until q is typed. Raises what `draw` raises, the screen restored.

    What is larger than the window is cut.
    """
    with _own_screen(), _woken() as wakes:
        while True:
            text, due_s = draw(), time.monotonic() + interval_s
            _paint(text)
            while (left_s := due_s - time.monotonic()) > 0:
                ready, _, _ = select.select([sys.stdin, wakes], [], [], left_s)
                if sys.stdin in ready and _LEAVING.intersection(os.read(sys.stdin.fileno(), 64) or b"q"):
                    return
                if wakes in ready:
                    os.read(wakes, 64)
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


class _Screen:
    """The terminal: keys come one by one and unseen, on a screen of its own; and back, so that all is as it was."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(sys.stdin)

    def enter(self, *_: object) -> None:
        with suppress(termios.error):  # stopped for asking from the background; going on from there enters anew
            tty.setcbreak(sys.stdin)
        os.write(sys.stdout.fileno(), _ENTER)

    def leave(self) -> None:
        os.write(sys.stdout.fileno(), _LEAVE)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def stop(self, *_: object) -> None:
        """What Ctrl-Z asks for: the shell has its terminal until we are told to go on."""
        self.leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self.stop)
        self.enter()


@contextmanager
def _own_screen() -> Iterator[None]:
    screen = _Screen()
    handlers = {signal.SIGTSTP: screen.stop, signal.SIGCONT: screen.enter}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    screen.enter()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        screen.leave()


@contextmanager
def _woken() -> Iterator[int]:
    """A descriptor that can be read whenever the window has another size, or we go on after a stop."""
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
