"""One JSON line for every request: who, what, how long, how many tokens. Never a prompt, an answer or a key.

A log that cannot be written is no reason to stop serving: lines are dropped, and the next one tells how many.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path
from typing import IO, Any

import msgspec

from tuili.server.caller import Caller

MAX_LINE_BYTES = 1024
_MAX_TEXT_CHARS = 200
_RETRY_S = 1.0


class RequestLog:
    """Writes to a file, or to the standard output; also counts answers by route and status."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stream: IO[bytes] | None = None
        self._retry_at_s = 0.0
        self.num_dropped = 0
        self.counts: Counter[tuple[str, str, int]] = Counter()  # (method, route, status)

    def add(self, scope: MutableMapping[str, Any], caller: Caller, status: int, seconds: float, num_bytes: int) -> None:
        """The line of a request that has ended."""
        route = getattr(scope.get("route"), "path", "-")
        method = scope["method"] if scope.get("route") is not None else "-"  # what a client makes up is no label
        self.counts[method, route, status] += 1
        headers = dict(scope["headers"])
        record = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}Z",
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
        self._write(_line(record))

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        if self._stream is not None and self._path is not None:
            self._stream.close()
        self._stream = None

    def _write(self, line: bytes) -> None:
        if time.monotonic() < self._retry_at_s:
            self.num_dropped += 1
            return
        try:
            stream = self._opened()
            if self.num_dropped:
                stream.write(b'{"dropped_lines":%d}\n' % self.num_dropped)
            stream.write(line)
            stream.flush()
            self.num_dropped = 0
        except (OSError, ValueError, AttributeError):  # full, closed, or there is none
            self.num_dropped += 1
            self._retry_at_s = time.monotonic() + _RETRY_S
            self._forget()

    def _opened(self) -> IO[bytes]:
        if self._stream is None:
            # Unbuffered: a line that could not be written must not be written again later, in part.
            self._stream = sys.stdout.buffer if self._path is None else self._path.open("ab", buffering=0)
        return self._stream

    def _forget(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and self._path is not None:
            try:
                stream.close()
            except OSError:
                return  # it is given up anyhow


def _short(text: str) -> str:
    """Bounded, and free of what terminals and line readers obey; JSON escapes only some of it."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_MAX_TEXT_CHARS])


def _line(record: dict[str, Any]) -> bytes:
    line = msgspec.json.encode(record)
    if len(line) >= MAX_LINE_BYTES:
        kept = {name: value if not isinstance(value, str) else value[:40] for name, value in record.items()}
        line = msgspec.json.encode(kept)
    return line[: MAX_LINE_BYTES - 1] + b"\n"
