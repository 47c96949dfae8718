"""What is left of a complete answer waits for a client that reads, however slowly, and for no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from support.virtual_loop import run_virtually
from tuili.server.guards.http_protocol import GuardedHttpProtocol
from tuili.server.http_settings import HttpSettings

SEND_TIMEOUT_S = 30.0


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
