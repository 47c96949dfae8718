"""A program in a pseudo-terminal: type, wait for what it writes, never sleep."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S, PATIENCE_S = 240.0, 10.0
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"


class Terminal:
    """The keyboard and screen of a running program."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Gives the window another size, of which the program is told."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def interrupt(self, expected: str) -> str:
        """Types Ctrl-C at a prompt and waits for `expected`.

        Python's readline sees a signal only while it waits for keys: one between its prompt and that is held back until
        the next, which is typed when nothing comes.
        """
        for _ in range(int(TIMEOUT_S / PATIENCE_S)):
            self.type(CTRL_C)
            with contextlib.suppress(AssertionError):
                return self.wait_for(expected, PATIENCE_S)
        raise AssertionError(f"waited for {expected!r}, the screen shows {self._unread!r}")

    def wait_for(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        """What was written up to and including `text`; AssertionError when it does not come."""
        deadline = time.monotonic() + timeout_s
        while text not in self._unread:
            piece = self._read(deadline)
            assert piece, f"waited for {text!r}, the screen shows {self._unread!r}"
            self._unread += piece
        end = self._unread.index(text) + len(text)
        seen, self._unread = self._unread[:end], self._unread[end:]
        return seen

    def finish(self) -> tuple[int, str]:
        """The exit code, and the rest of what was written."""
        deadline = time.monotonic() + TIMEOUT_S
        while piece := self._read(deadline):
            self._unread += piece
        return self._process.wait(TIMEOUT_S), self._unread

    def _read(self, deadline: float) -> str:
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return ""
        try:
            return os.read(self._descriptor, 65536).decode(errors="replace")
        except OSError:  # Linux says EIO when the program has closed its side
            return ""


@contextmanager
def in_terminal(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Runs a command with a terminal of its own, which is also what Ctrl-C reaches."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, **environment},
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
