"""A server that refuses one request after another takes connections in by the dozen, and nobody is told otherwise."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from support.fake_backend import FakeBackend
from support.served import SmallPool
from support.small_model import small_model
from tuili.server import turnstile as module
from tuili.server.api_keys import read_api_keys
from tuili.server.app import create_app
from tuili.server.door import Door
from tuili.server.edge import Edge
from tuili.server.guards.http_protocol import guarded_protocol
from tuili.server.http_settings import HttpSettings
from tuili.server.run import _Server
from tuili.server.turnstile import Turnstile, read_request, words_of

BODY = json.dumps({"prompt": [1, 2, 3], "max_tokens": 2, "temperature": 0}).encode()
FIELDS = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}"
HEAD = f"POST /v1/completions HTTP/1.1\r\n{FIELDS}\r\n"
WHOLE = f"{HEAD}connection: close\r\n\r\n".encode() + BODY


@pytest.fixture(autouse=True)
def turns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first refusal on, until a test says otherwise."""
    monkeypatch.setattr(module, "BUSY_COUNT", 1)
    monkeypatch.setattr(module, "LINGER_S", 1e9)


@asynccontextmanager
async def served(
    tmp_path: Path, listener: socket.socket | None = None, **limits: Any
) -> AsyncIterator[tuple[_Server, socket.socket]]:
    """A server on a socket of its own, where one request may wait."""
    settings = HttpSettings(max_queued_requests=1, log_path=tmp_path / "log", **limits)
    app = create_app(settings, SmallPool(small_model(FakeBackend())))
    http = guarded_protocol(settings, app.state.door.refusal)
    server = _Server(uvicorn.Config(app, log_level="error", http=http, ws="none", access_log=False))
    listener = listener or socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            await asyncio.sleep(0)
            assert not running.done()
        yield server, listener
    finally:
        server.stop.set()
        await running


def unix_listener(path: Path) -> socket.socket:
    """Whose clients' bytes have arrived as soon as they are sent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


async def connect(listener: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = listener.getsockname()
    return await (asyncio.open_unix_connection(place) if isinstance(place, str) else asyncio.open_connection(*place))


async def answers_of_a_turn(
    turnstile: Turnstile, listener: socket.socket, *asks: bytes
) -> list[tuple[int, Any, bytes]]:
    """Of those who come together, in their order."""
    turnstile._stop_timer()
    streams = [await connect(listener) for _ in asks]
    for (_, writer), ask in zip(streams, asks, strict=True):
        writer.write(ask)
    turnstile._turn()
    return [await read_answer(*stream) for stream in streams]


async def answer(listener: socket.socket, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to what is sent; each piece once the one before was acknowledged."""
    reader, writer = await connect(listener)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    return await read_answer(reader, writer)


async def read_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, dict[str, str], bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    if headers.get("connection") == "close":
        assert await reader.read() == b"", "something follows the answer"
    writer.close()
    await writer.wait_closed()
    return int(lines[0].split()[1]), headers, body


def turnstile_of(server: _Server) -> Turnstile:
    assert server.turnstile is not None
    return server.turnstile


async def test_refusals_are_the_same_at_the_turnstile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    refusal = Door.refusal

    def watched(self: Door, scope: Any, *arguments: Any) -> Any:
        looked_at.append(scope["path"])
        return refusal(self, scope, *arguments)

    monkeypatch.setattr(Door, "refusal", watched)
    async with asyncio.timeout(120), served(tmp_path, unix_listener(tmp_path / "place")) as (server, listener):
        turnstile = turnstile_of(server)
        with server.config.app.state.serving.accepted():  # type: ignore[union-attr]
            refused = [await answer(listener, WHOLE)]
            assert not turnstile.listens.is_set()
            assert not server.servers
            refused += await answers_of_a_turn(turnstile, listener, WHOLE, WHOLE, WHOLE)
        assert {status for status, _, _ in refused} == {429}
        assert len(looked_at) == 2, "by the protocol and by the turnstile; the others asked in the same words"
        told = [{name: value for name, value in headers.items() if "id" not in name} for _, headers, _ in refused]
        assert all(one.keys() == told[0].keys() and one["retry-after"] == told[0]["retry-after"] for one in told)
        bodies = [json.loads(body) for _, _, body in refused]
        assert all(body["error"].keys() == bodies[0]["error"].keys() for body in bodies)
        assert len({headers["x-request-id"] for _, headers, _ in refused}) == len(refused)


async def test_others_pass_the_turnstile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(120), served(tmp_path) as (server, listener):
        turnstile = turnstile_of(server)
        with server.config.app.state.serving.accepted():  # type: ignore[union-attr]
            assert (await answer(listener, WHOLE))[0] == 429
            assert not turnstile.listens.is_set()
            assert (await answer(listener, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 200
            assert (await answer(listener, f"{HEAD}\r\n".encode(), BODY))[0] == 429  # in two pieces, or one
            assert (await answer(listener, b"nothing of HTTP\r\n\r\n"))[0] == 400
        assert not turnstile.listens.is_set()
        status, _, body = await answer(listener, WHOLE)
        assert status == 200, body
        monkeypatch.setattr(module, "LINGER_S", 0.0)
        await turnstile.listens.wait()
        assert len(server.servers) == 1
        assert (await answer(listener, WHOLE))[0] == 200


async def test_who_comes_with_others_is_let_in_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    exchange = Edge._exchange

    async def watched(self: Edge, scope: Any, *arguments: Any) -> None:
        entered.append(scope["path"])
        await exchange(self, scope, *arguments)

    monkeypatch.setattr(Edge, "_exchange", watched)
    health = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with asyncio.timeout(120), served(tmp_path, unix_listener(tmp_path / "place")) as (server, listener):
        turnstile = turnstile_of(server)
        turnstile._begin()
        answers = await answers_of_a_turn(turnstile, listener, health, WHOLE, WHOLE, health, WHOLE)
    assert [status for status, _, _ in answers] == [200, 200, 429, 200, 429]
    assert sorted(entered) == ["/health", "/health", "/v1/completions"]


@pytest.mark.parametrize("ahead", [b"", b"\r\n", b"\r\n\r\n"])
async def test_who_has_no_key_is_told_so_however_full_it_is_and_takes_nobodys_room(
    tmp_path: Path, ahead: bytes
) -> None:
    """Also behind empty lines, which a parser reads past, and where keys are equally long."""
    theirs, nobodys = (
        ahead + WHOLE.replace(b"\r\nhost", b"\r\nx-api-key: %b\r\nhost" % key) for key in (b"user-key-1", b"user-key-2")
    )
    keys = read_api_keys(["user-key-1"])
    async with (
        asyncio.timeout(120),
        served(tmp_path, unix_listener(tmp_path / "place"), api_keys=keys) as (server, listener),
    ):
        turnstile = turnstile_of(server)
        turnstile._begin()
        with server.config.app.state.serving.accepted():  # type: ignore[union-attr]
            refused = await answers_of_a_turn(turnstile, listener, theirs, nobodys, theirs, nobodys)
        answers = await answers_of_a_turn(turnstile, listener, nobodys, theirs, nobodys, theirs)
    assert [status for status, _, _ in refused] == [429, 401, 429, 401]
    assert [status for status, _, _ in answers] == [401, 200, 401, 429]


async def test_who_sends_too_many_headers_is_told_so_whether_there_is_room_or_not(tmp_path: Path) -> None:
    async with asyncio.timeout(120), served(tmp_path) as (server, listener):
        many = WHOLE.replace(b"host", b"x: y\r\n" * HttpSettings().max_headers + b"host")
        with server.config.app.state.serving.accepted():  # type: ignore[union-attr]
            assert (await answer(listener, WHOLE))[0] == 429
            assert (await answer(listener, many))[0] == 431
            assert (await answer(listener, WHOLE.replace(b"/v1/", b"/v1/\xff")))[0] == 400


async def test_a_server_ends_while_it_turns(tmp_path: Path) -> None:
    async with asyncio.timeout(120):
        async with served(tmp_path) as (server, listener):
            with server.config.app.state.serving.accepted():  # type: ignore[union-attr]
                assert (await answer(listener, WHOLE))[0] == 429
                assert not turnstile_of(server).listens.is_set()
            address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)


async def test_a_server_that_cannot_listen_again_tries_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(120), served(tmp_path) as (server, listener):
        turnstile, failures = turnstile_of(server), [OSError("no descriptor"), RuntimeError("no handle")]
        listen = asyncio.get_running_loop().create_server

        async def fail_at_first(*given: object, **named: object) -> object:
            if failures:
                raise failures.pop()
            return await listen(*given, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(turnstile._loop, "create_server", fail_at_first)
        with server.config.app.state.serving.accepted():  # type: ignore[union-attr]
            assert (await answer(listener, WHOLE))[0] == 429
        monkeypatch.setattr(module, "LINGER_S", 0.0)
        await turnstile.listens.wait()
        assert not failures
        assert (await answer(listener, WHOLE))[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:-1],
        WHOLE[:40],
        WHOLE + b"x",
        WHOLE.replace(b"connection: close\r\n", b"") * 2,
        WHOLE.replace(b"\r\nhost", b"\r\nexpect: 100-continue\r\nhost"),
        WHOLE.replace(b"connection: close", b"connection: upgrade\r\nupgrade: websocket"),
        WHOLE.replace(b"/1.1", b"/1.0"),
        WHOLE.replace(b"/v1/", b"/%76%31/"),
        WHOLE.replace(b"/v1/", b"/v1/\xff"),
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nauthorization: Bearer k\r\n\r\n",
        WHOLE.replace(b"/v1/", b"http://localhost/v1/"),
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_no_whole_plain_request_goes_its_usual_way(data: bytes) -> None:
    assert read_request(data) is None


@pytest.mark.parametrize("data", [b"", b"POST", WHOLE[:40], b"x\r\n\r"])
def test_what_has_no_whole_headers_is_known_by_nothing(data: bytes) -> None:
    assert words_of(data, ("10.0.0.1", 5)) is None


def test_a_request_is_known_by_its_headers_its_length_and_whose_it_is() -> None:
    words = words_of(WHOLE, ("10.0.0.1", 5))
    assert words is not None
    assert words[1:] == (len(BODY), "10.0.0.1")
    assert words == words_of(WHOLE, ("10.0.0.1", 6))
    others = [words_of(WHOLE, ""), words_of(WHOLE + b" ", ("10.0.0.1", 5)), words_of(b"X" + WHOLE, ("10.0.0.1", 5))]
    assert words not in others
    assert WHOLE.partition(b"\r\n\r\n")[0] not in words, "keys are kept as hashes"


@pytest.mark.parametrize(
    ("data", "is_known"),
    [
        (WHOLE, True),
        (b"\r\n" + WHOLE, True),
        (b"\r\n\r\n" + WHOLE, False),
        (b"\n\r\n\r\n" + WHOLE, False),
        (WHOLE + b"\r\n", False),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", False),
    ],
)
def test_words_know_a_request_only_if_its_body_is_all_that_is_behind_them(data: bytes, is_known: bool) -> None:
    request, words = read_request(data), words_of(data, "")
    assert request is not None
    assert words is not None
    assert (words.num_behind == request.num_body_bytes) == is_known


def test_a_whole_request_is_read() -> None:
    request = read_request(WHOLE.replace(b"\r\nhost", b"\r\nX-Api-Key: K\r\nhost"))
    assert request is not None
    assert (request.method, request.url) == ("POST", b"/v1/completions")
    assert dict(request.headers)[b"x-api-key"] == b"K"
