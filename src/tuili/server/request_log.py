"""One JSON line for every request: who, what, how long, how many tokens. Never a prompt, an answer or a key.

A log that cannot be written is no reason to stop serving: lines are dropped, and the next one tells how many.
A thread writes: whoever reads the log, or does not, holds up nobody else. It wakes up a few times a second at most, as
a thread that wakes for every line takes the interpreter from those who answer.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, MutableMapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from tuili.server.caller import Caller

MAX_LINE_BYTES = 1024
_MAX_TEXT_CHARS = 200
_RETRY_S = 1.0
_MAX_WAITING = 1024  # lines
_CLOSE_S = 2.0
_PAUSE_S = 0.05  # between writes
_PIPE_BYTES = 4096


class Line(NamedTuple):
    """What is said of one request."""

    counted: tuple[str, str, int]  # method, route and status
    time: str  # as the text begins with it
    text: bytes


class RequestLog:
    """Writes to a file, or to the standard output; also counts answers by route and status."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stream: IO[bytes] | None = None
        self._retry_at_s = 0.0
        self._waiting: deque[bytes] = deque()  # lines stay here while they are written
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_hurried = False  # somebody waits for the lines
        self._is_asleep = False  # the thread, until there is a line
        self._writer: threading.Thread | None = None
        self._num_untold = 0
        self.num_dropped = 0
        self.counts: Counter[tuple[str, str, int]] = Counter()  # as lines are

    def add(self, scope: MutableMapping[str, Any], caller: Caller, status: int, seconds: float, num_bytes: int) -> None:
        """The line of a request that has ended."""
        self.put(line_of(scope, caller, status, seconds, num_bytes))

    def put(self, line: Line) -> None:
        """A line that is made."""
        self.counts[line.counted] += 1
        self._put(line.text)

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Waits until every line has been written or dropped; whether that came about in time."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self) -> None:
        """Writes what waits, unless that takes too long, and closes the file; a later line opens it again."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._writer is None, _CLOSE_S)

    def _put(self, line: bytes) -> None:
        with self._changed:
            if len(self._waiting) == _MAX_WAITING:
                self._drop()
                return
            self._waiting.append(line)
            if self._is_asleep:
                self._changed.notify_all()
            if self._writer is None:
                self._is_closing = False
                self._writer = threading.Thread(target=self._write_all, name="request log", daemon=True)
                self._writer.start()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_asleep = True
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                self._is_asleep = False
                if not self._waiting:
                    self._forget()
                    self._writer, self._is_closing = None, False
                    self._changed.notify_all()
                    return
                lines = list(self._waiting)
            for some in _chunks(lines):
                is_written = self._write(b"".join(some))
                with self._changed:
                    for _ in some:
                        self._waiting.popleft()
                        if not is_written:
                            self._drop()
            with self._changed:
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_hurried or self._is_closing, _PAUSE_S)
                self._is_hurried = False

    def _drop(self) -> None:
        self.num_dropped += 1
        self._num_untold += 1

    def _write(self, lines: bytes) -> bool:
        if time.monotonic() < self._retry_at_s:
            return False
        try:
            stream = self._opened()
            if num_untold := self._num_untold:
                stream.write(b'{"dropped_lines":%d}\n' % num_untold)
                with self._changed:
                    self._num_untold -= num_untold
            stream.write(lines)
        except (OSError, ValueError, AttributeError):  # full, closed, or there is none
            self._retry_at_s = time.monotonic() + _RETRY_S
            self._forget()
            return False
        return True

    def _opened(self) -> IO[bytes]:
        if self._stream is None:
            # Unbuffered: a line that could not be written must not be written again later, in part; and a thread that
            # hangs in a buffer's write would have the interpreter abort as it ends.
            is_stdout = self._path is None
            self._stream = open(  # noqa: SIM115
                self._path or sys.stdout.fileno(), "ab", buffering=0, closefd=not is_stdout
            )
        return self._stream

    def _forget(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError:
                return  # it is given up anyhow


def line_of(scope: MutableMapping[str, Any], caller: Caller, status: int, seconds: float, num_bytes: int) -> Line:
    """What is said of a request."""
    route = getattr(scope.get("route"), "path", "-")
    method = scope["method"] if scope.get("route") is not None else "-"  # what a client makes up is no label
    headers = dict(scope["headers"])
    time_told = stamp()
    record = {
        "time": time_told,
        "request_id": caller.request_id,
        "address": caller.address,
        "key": caller.key_id,
        "method": _short(scope["method"]),
        "path": _short(scope["path"]),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "bytes": num_bytes,
        **{name: _short(value) if isinstance(value, str) else value for name, value in caller.notes.items()},
    }
    if b"user-agent" in headers:
        record["agent"] = _short(headers[b"user-agent"].decode("latin-1"))
    return Line((method, route, status), time_told, _line(record))


def _chunks(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    """As many at a time as a pipe takes whole or not at all."""
    some: list[bytes] = []
    num_bytes = 0
    for line in lines:
        if some and num_bytes + len(line) > _PIPE_BYTES:
            yield some
            some, num_bytes = [], 0
        some.append(line)
        num_bytes += len(line)
    yield some


def stamp() -> str:
    """The time, as lines tell it."""
    return _stamp(int(time.time()))


@lru_cache(maxsize=1)
def _stamp(now_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))


def _short(text: str) -> str:
    """Bounded, and free of what terminals and line readers obey; JSON escapes only some of it."""
    text = text[:_MAX_TEXT_CHARS]
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _line(record: dict[str, Any]) -> bytes:
    line = msgspec.json.encode(record)
    if len(line) >= MAX_LINE_BYTES:
        kept = {name: value if not isinstance(value, str) else value[:40] for name, value in record.items()}
        line = msgspec.json.encode(kept)
    return line[: MAX_LINE_BYTES - 1] + b"\n"
