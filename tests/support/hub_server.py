"""A Hugging Face hub on the loopback: as much of its protocol as fetching a model takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from support.local_server import serving_handler

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class HubServer:
    """Repositories by name, each with its files. `damaged` files arrive with one byte flipped, that many times."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    damaged: dict[str, int] = field(default_factory=dict)
    has_ranges: bool = True
    num_bytes_sent: int = 0  # of files
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization

    def fetched(self) -> list[str]:
        """Names of the files that were really sent, in order."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def serving_hub() -> Iterator[HubServer]:
    """A hub on a free port of the loopback for as long as the context lasts."""
    state = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(state, self, with_body=True)

        def do_HEAD(self) -> None:
            _answer(state, self, with_body=False)

        def log_message(self, *_: object) -> None:
            pass

    with serving_handler(Handler) as state.url:
        yield state


def _answer(state: HubServer, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
    path = handler.path.partition("?")[0]
    state.requests.append((handler.command, path, handler.headers.get("Authorization")))
    api = path.startswith("/api/models/")
    repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
    files = state.repositories.get(repository)
    if files is None:
        _send(handler, 404, {"X-Error-Code": "RepoNotFound"}, b"", with_body=with_body)
    elif repository in state.gated:
        _send(handler, 403, {"X-Error-Code": "GatedRepo"}, b"", with_body=with_body)
    elif api:
        body = json.dumps(_model_info(repository, files)).encode()
        _send(handler, 200, {"Content-Type": "application/json"}, body, with_body=with_body)
    else:
        _send_file(state, handler, path.split("/resolve/", 1)[1].split("/", 1)[1], files, with_body=with_body)


def _model_info(repository: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = []
    for name, data in files.items():
        sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if name.endswith((".gguf", ".safetensors", ".bin")):
            sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        siblings.append(sibling)
    return {
        "_id": "1",
        "id": repository,
        "modelId": repository,
        "sha": COMMIT,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "cardData": {"license": "mit"},
        "siblings": siblings,
    }


def _send_file(
    state: HubServer, handler: BaseHTTPRequestHandler, name: str, files: dict[str, bytes], *, with_body: bool
) -> None:
    if name not in files:
        _send(handler, 404, {"X-Error-Code": "EntryNotFound"}, b"", with_body=with_body)
        return
    data = files[name]
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
    if with_body and state.damaged.get(name, 0) > 0:
        state.damaged[name] -= 1
        data = bytes([data[0] ^ 1]) + data[1:]
    status, total = 200, len(data)
    if state.has_ranges and (asked := handler.headers.get("Range", "")).startswith("bytes="):
        start, _, end = asked.removeprefix("bytes=").partition("-")
        data = data[int(start) : int(end) + 1 if end else total]
        status, headers = 206, headers | {"Content-Range": f"bytes {start}-{int(start) + len(data) - 1}/{total}"}
    state.num_bytes_sent += len(data) if with_body else 0
    _send(handler, status, headers, data, with_body=with_body)


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, *, with_body: bool
) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    if with_body:
        handler.wfile.write(body)
