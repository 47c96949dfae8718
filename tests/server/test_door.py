"""A full server refuses at the headers, and says what its layers would say."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from support.served import listening, small_app
from tuili.server.api_keys import read_api_keys
from tuili.server.edge import Edge
from tuili.server.guards import http_protocol

KEYS = read_api_keys(["user-key-1 infer", "operator-1 manage"])
KEY = {"authorization": "Bearer user-key-1"}
SETTINGS: dict[str, Any] = {
    "api_keys": KEYS,
    "max_queued_requests": 1,
    "allowed_origins": ("https://friend.example",),
    "max_body_bytes": 1000,
}
ASKED: dict[str, tuple[int, str, Mapping[str, str], bytes]] = {
    "room": (429, "/v1/completions", KEY, b"{no JSON"),
    "in the words of its dialect": (429, "/v1/messages", KEY, b"{}"),
    "for a page": (429, "/v1/chat/completions", {**KEY, "origin": "https://friend.example"}, b"{}"),
    "a stranger": (401, "/v1/completions", {}, b"{}"),
    "another scope": (403, "/v1/completions", {"authorization": "Bearer operator-1"}, b"{}"),
    "a foreign name": (403, "/v1/completions", {**KEY, "host": "evil.example"}, b"{}"),
    "a foreign page": (403, "/v1/completions", {**KEY, "origin": "https://evil.example"}, b"{}"),
    "too much": (413, "/v1/completions", KEY, b"x" * 1001),
}
TOLD = ("content-type", "retry-after", "www-authenticate", "access-control-allow-origin", "vary")


def told(answer: httpx.Response) -> tuple[int, dict[str, str | None], Any]:
    """What an answer says; ids are of one request."""
    request_id = answer.headers["x-request-id"]
    body = json.loads(answer.text.replace(request_id, "ID"))
    return answer.status_code, {name: answer.headers.get(name) for name in TOLD}, body


@pytest.mark.parametrize(("status", "path", "headers", "body"), ASKED.values(), ids=ASKED)
async def test_a_refusal_says_what_the_layers_say(
    status: int, path: str, headers: Mapping[str, str], body: bytes
) -> None:
    async with small_app(**SETTINGS) as (app, client):
        with app.state.serving.accepted():
            by_layers = told(await client.post(path, headers=headers, content=body))
            scope = {
                "type": "http",
                "method": "POST",
                "path": path,
                "root_path": "",
                "http_version": "1.1",
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            }
            if "host" not in headers:
                scope["headers"].append((b"host", b"localhost"))
            scope["headers"].append((b"content-length", b"%d" % len(body)))
            refusal = app.state.door.refusal(scope)
        found = httpx.Response(refusal.status, headers=refusal.headers, content=refusal.body)
        assert told(found) == by_layers
        assert found.status_code == status
        assert int(found.headers["content-length"]) == len(found.content)
        route = path if status == 429 else "-"
        assert app.state.request_log.counts["POST" if status == 429 else "-", route, status] == 2
        assert scope["state"]["caller"].asks_model == (status == 429)  # who is no caller has no span


def test_who_is_refused_costs_no_task_and_may_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    exchange = Edge._exchange

    async def watched(self: Edge, scope: Any, *arguments: Any) -> None:
        entered.append(scope["path"])
        await exchange(self, scope, *arguments)

    monkeypatch.setattr(Edge, "_exchange", watched)
    with listening(max_queued_requests=1) as server, httpx.Client(base_url=server.url, timeout=240) as client:
        admission = server.app.state.serving.admission
        admission.num_queued = 1
        for content in (b'{"prompt": "a"}', b"x" * 300_000, iter([b"x" * 1000] * 5)):  # the last without its length
            assert client.post("/v1/completions", content=content).status_code == 429
        assert client.get("/health").status_code == 200
        assert entered == ["/health"]
        with client.stream("POST", "/v1/completions", content=b"{}", headers={"connection": "close"}) as answer:
            assert (answer.status_code, answer.headers["connection"]) == (429, "close")
        admission.num_queued = 0
        asked = {"prompt": "a", "max_tokens": 1}
        assert client.post("/v1/completions", json=asked).status_code == 200
        server.app.state.serving.is_draining = True
        assert client.post("/v1/completions", json=asked).status_code == 503
        assert entered == ["/health", "/v1/completions"]
        assert admission.num_refused == 4


def test_requests_sent_ahead_are_refused_in_their_turn() -> None:
    with listening(max_queued_requests=1) as server, server.connect() as connection:
        server.app.state.serving.admission.num_queued = 1
        ask = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(ask + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + ask + ask + last)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"429", b"200", b"429", b"429", b"200"]


def test_who_waits_for_a_word_to_send_is_told_that_the_connection_ends() -> None:
    with listening(max_queued_requests=1) as server, server.connect() as connection:
        server.app.state.serving.admission.num_queued = 1
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        connection.sendall(head)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"429"]
    assert b"\r\nconnection: close\r\n" in answers


def test_who_reads_no_refusal_gets_no_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked behind waits in the application, which waits for the client: refusals do not fill the memory."""
    waiting = threading.Event()
    exchange, num_asks = Edge._exchange, 10_000

    async def watched(self: Edge, *arguments: Any) -> None:
        waiting.set()
        await exchange(self, *arguments)

    monkeypatch.setattr(Edge, "_exchange", watched)
    asks = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" * num_asks
    with listening(max_queued_requests=1) as server, socket.socket() as connection:
        server.app.state.serving.admission.num_queued = 1
        counts = server.app.state.request_log.counts
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        connection.settimeout(240)
        connection.connect((server.host, server.port))

        def ask() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(asks)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            while not waiting.wait(0.01):
                assert counts["POST", "/v1/completions", 429] < num_asks
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            asking.join()


def test_a_refusal_leaves_time_for_a_body_that_still_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed at once is reset, and who sends everything before reading never learns why."""
    monkeypatch.setattr(http_protocol, "_LINGER_S", 240.0)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3000\r\n\r\n"
    with listening(max_queued_requests=1) as server, server.connect() as connection:
        server.app.state.serving.admission.num_queued = 1
        connection.sendall(head)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        for _ in range(3):
            connection.sendall(b"x" * 1000)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"429"]
