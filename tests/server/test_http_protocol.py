"""What is left of a complete answer waits for a client that reads, however slowly, and for no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from support.virtual_loop import run_virtually
from tuili.server.guards.http_protocol import GuardedHttpProtocol
from tuili.server.http_settings import HttpSettings

SEND_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 75
BODY = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n", b"ab", b"cde"


class Connection(asyncio.Transport):
    """Whose client has read all but `num_unread(seconds since the start)` bytes."""

    def __init__(self, num_unread: Callable[[float], int]) -> None:
        super().__init__()
        self._num_unread, self._start_s = num_unread, asyncio.get_running_loop().time()
        self.protocol: GuardedHttpProtocol
        self.aborted_s: float | None = None

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_s

    def get_write_buffer_size(self) -> int:
        return self._num_unread(self._now_s())

    def is_closing(self) -> bool:
        return self.aborted_s is not None

    def abort(self) -> None:
        self.aborted_s = self._now_s()
        self.protocol.connection_lost(None)

    def close(self) -> None:
        """It is gone already."""


def aborted_after(num_unread: Callable[[float], int]) -> float | None:
    """When the connection was dropped, of an answer that is complete at the start."""

    async def main() -> float | None:
        config = uvicorn.Config(FastAPI(), http=GuardedHttpProtocol)
        config.load()
        settings = HttpSettings(send_timeout_s=SEND_TIMEOUT_S)
        protocol = GuardedHttpProtocol(settings, config=config, server_state=ServerState(), app_state={})
        connection = Connection(num_unread)
        connection.protocol = protocol
        protocol.connection_made(connection)
        protocol._stop_timer()  # of the request's headers, which have come
        protocol.timeout_keep_alive = 10_000
        protocol.on_response_complete()
        await asyncio.sleep(1000)
        return connection.aborted_s

    return run_virtually(main())


def test_who_reads_nothing_is_let_go_after_the_time_allowed() -> None:
    assert aborted_after(lambda _: 5_000_000) == SEND_TIMEOUT_S


def test_who_reads_slowly_is_waited_for() -> None:
    assert aborted_after(lambda now_s: max(0, 5_000_000 - int(now_s) * 10_000)) is None


def test_who_reads_slowly_and_stops_is_let_go() -> None:
    assert aborted_after(lambda now_s: max(2_000_000, 5_000_000 - int(now_s) * 10_000)) == 330.0


def test_who_has_read_all_is_not_watched() -> None:
    assert aborted_after(lambda _: 0) is None


class IdleConnection(Connection):
    """Whose client reads everything."""

    def __init__(self) -> None:
        super().__init__(lambda _: 0)
        self.num_answers = 0
        self.closed_s: float | None = None

    def write(self, data: Any) -> None:
        self.num_answers += bytes(data).count(b"HTTP/1.1 429")

    def is_closing(self) -> bool:
        return self.closed_s is not None

    def close(self) -> None:
        self.closed_s = self.closed_s or self._now_s()

    def abort(self) -> None:
        self.close()


async def refuse_unread(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 429, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("pieces", "num_answers"),
    [
        ((b"".join(BODY),), 1),
        (BODY, 1),  # refused before its body came
        ((b"".join(BODY), b"\r\n"), 1),  # an empty line begins no request
        ((*BODY, b"".join(BODY)), 2),
    ],
)
def test_a_connection_that_asks_no_more_is_closed(pieces: tuple[bytes, ...], num_answers: int) -> None:
    async def main() -> tuple[int, float | None]:
        config = uvicorn.Config(
            refuse_unread, http=GuardedHttpProtocol, lifespan="off", timeout_keep_alive=KEEP_ALIVE_S
        )
        config.load()
        protocol = GuardedHttpProtocol(HttpSettings(), config=config, server_state=ServerState(), app_state={})
        connection = IdleConnection()
        protocol.connection_made(connection)
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(1)
        await asyncio.sleep(1000)
        return connection.num_answers, connection.closed_s

    told, closed_s = run_virtually(main())
    assert told == num_answers
    assert closed_s is not None
    assert closed_s <= KEEP_ALIVE_S + len(pieces)
