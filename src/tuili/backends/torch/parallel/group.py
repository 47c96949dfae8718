"""The other processes of a group: started, told what to do, watched, ended. Knows processes and frames; no tensors.

Each worker is a command that gets a socket and this process's id as its last arguments. Its end of the socket closes
with it, and ours with us.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from tuili import errors
from tuili.backends.torch.parallel.frames import Frame, read_frame
from tuili.errors import DeviceFailureError, TuiliError

COMMAND = (sys.executable, "-P", "-m", "tuili.backends.torch.parallel.worker")
EXIT_NO_MEMORY = 72
NO_MEMORY = "found no memory in the middle of a step, in which the others wait for it"
GRACE_S = 5.0  # for a worker that was asked to end
_NAMING_S = 5.0  # for the system to say that the process is gone whose connection is
_log = logging.getLogger(__name__)


class Worker:
    """One process, and the thread that started it, waits for its end, and with which it dies."""

    def __init__(self, rank: int, size: int, on_lost: Callable[[], None]) -> None:
        self.rank = rank
        self.failure: str | None = None  # how it ended without having been asked to
        self.ended = threading.Event()
        self._size = size
        self._on_lost = on_lost
        self._is_asked_to_end = False
        self._socket, theirs = socket.socketpair()
        self._stream: BinaryIO = self._socket.makefile("rb")
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._keep, args=(theirs,), name=f"tuili-rank-{rank}", daemon=True).start()

    @property
    def process_id(self) -> int:
        self._started.wait()
        assert self._process is not None, "it could not be started"
        return self._process.pid

    def _keep(self, theirs: socket.socket) -> None:
        code: object = "could not be started"
        try:
            with theirs:
                self._process = _spawn(theirs)
            self._started.set()
            code = self._process.wait()
        except OSError as error:
            code = error.strerror
        finally:
            self._started.set()
            if not self._is_asked_to_end:
                self.failure = f"rank {self.rank} of {self._size} {_end(code)}"
                _log.error("%s", self.failure)
            self.ended.set()
            if self.failure is not None:
                self._on_lost()

    def send(self, data: bytes) -> None:
        """A frame, encoded. Raises DeviceFailureError when the process is gone."""
        try:
            self._socket.sendall(data)
        except OSError:
            raise self.lost() from None

    def reply(self) -> Frame:
        """The next one. Raises the TuiliError that it tells, DeviceFailureError when the process is gone."""
        try:
            frame = read_frame(self._stream)
        except (OSError, EOFError):
            frame = None
        if frame is None:
            raise self.lost()
        if frame.word == "error":
            kind = getattr(errors, frame.values["kind"], TuiliError)
            raise kind(f"rank {self.rank}: {frame.values['message']}")
        return frame

    def lost(self) -> DeviceFailureError:
        """What became of it, once its connection broke."""
        self.ended.wait(_NAMING_S)
        return DeviceFailureError(self.failure or f"rank {self.rank} of {self._size} does not answer")

    def end(self, farewell: bytes) -> None:
        """Asks it to; `wait` makes it."""
        self._is_asked_to_end = True
        try:
            self._socket.sendall(farewell)
        except OSError:
            return

    def wait(self, grace_s: float) -> None:
        """Until it has ended, by force after grace_s."""
        self._started.wait()
        if self._process is not None and not self.ended.wait(grace_s):
            self._process.kill()
            self.ended.wait()
        self._stream.close()
        self._socket.close()


class WorkerGroup:
    """Ranks 1 to size - 1. `on_lost` is called, in a thread of the group's, when one ends without being asked to."""

    def __init__(self, size: int) -> None:
        self.on_lost: Callable[[], None] = lambda: None
        self._is_open = True
        self.workers = [Worker(rank, size, self._lose) for rank in range(1, size)]

    def _lose(self) -> None:
        if self._is_open:
            self.on_lost()

    @property
    def failure(self) -> str | None:
        """Who ended, and how."""
        return next((worker.failure for worker in self.workers if worker.failure is not None), None)

    def check(self) -> None:
        """Raises DeviceFailureError once one has ended without having been asked to."""
        if (failure := self.failure) is not None:
            raise DeviceFailureError(failure)

    def tell(self, frame: Frame) -> None:
        """All of them, in order with all else they are told. Raises DeviceFailureError."""
        self.check()
        data = frame.encoded()
        for worker in self.workers:
            worker.send(data)

    def replies(self) -> list[dict[str, Any]]:
        """One of each. Raises the first that is an error, once all have come."""
        found: list[dict[str, Any]] = []
        failures: list[TuiliError] = []
        for worker in self.workers:
            try:
                found.append(dict(worker.reply().values))
            except TuiliError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return found

    def wait_for_failure(self) -> str | None:
        """As `failure`, when a broken connection says that there is one and the system may not have said it yet."""
        for worker in self.workers:
            if worker.ended.wait(_NAMING_S / len(self.workers)):
                break
        return self.failure

    def last_words(self) -> TuiliError | None:
        """What one told that ended without having been asked to, or how one ended; None where none did."""
        self.wait_for_failure()
        told: list[TuiliError] = []
        for worker in self.workers:
            if worker.failure is not None:
                try:
                    worker.reply()
                except TuiliError as error:
                    told.append(error)
        return min(told, key=lambda error: isinstance(error, DeviceFailureError), default=None)

    def close(self, grace_s: float = GRACE_S) -> None:
        """Ends all of them and waits for that."""
        self._is_open = False
        farewell = Frame("close").encoded()
        for worker in self.workers:
            worker.end(farewell)
        for worker in self.workers:
            worker.wait(grace_s)


def _end(code: object) -> str:
    if code == EXIT_NO_MEMORY:
        return NO_MEMORY
    return f"ended (signal {-code})" if isinstance(code, int) and code < 0 else f"ended (exit code {code})"


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """In a session of its own, out of reach of the terminal's Ctrl-C; what it prints goes to our standard error."""
    try:
        os.fstat(2)
        output = 2
    except OSError:  # closed
        output = subprocess.DEVNULL
    return subprocess.Popen(
        [*COMMAND, str(theirs.fileno()), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
    )
