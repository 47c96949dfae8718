"""Takes connections in by the dozen while the server is full, and turns most away without a protocol for each.

A refusal costs little but for what surrounds it: an event loop woken for one request, in a process whose caches the
engine's data have taken meanwhile, a transport, a protocol. So once requests are refused one after another, listening
pauses, and whoever has come is taken in every few milliseconds: a request that is there as a whole and is refused gets
its answer and the end of its connection; every other connection goes its usual way. Knows sockets and ASGI scopes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import httptools
import uvicorn

from tuili.server.door import Door
from tuili.server.guards.http_protocol import answer_bytes, are_headers_allowed, dated_headers
from tuili.server.http_settings import HttpSettings
from tuili.server.repeats import Words

PERIOD_S = 0.03
BUSY_COUNT = 10  # refusals within a second, from which it turns
LINGER_S = 1.0  # without a refusal, after which connections are taken as they come again
_MAX_AT_ONCE = 64  # connections; then streams have their turn
_MAX_BYTES = 1 << 14  # of a request that is looked at here
_WITH_END = getattr(socket, "MSG_MORE", 0) | socket.MSG_DONTWAIT  # one packet of the answer and the connection's end
_END_OF_HEAD = b"\r\n\r\n"
_log = logging.getLogger(__name__)


class Turnstile:
    """In front of one server's sockets. Lives in its event loop; close it before the server."""

    def __init__(
        self,
        server: uvicorn.Server,
        sockets: Sequence[socket.socket],
        door: Door,
        limits: HttpSettings,
    ) -> None:
        """The server listens on duplicates of the sockets, without TLS, and has the same door and limits."""
        self.listens = asyncio.Event()  # set while the server listens, and this does nothing
        self.listens.set()
        self._server = server
        self._sockets = sockets
        self._places = {listener.fileno(): listener.getsockname() for listener in sockets}
        self._door = door
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._num_refused = 0
        self._second = 0  # in which these were refused
        self._refused_s = 0.0  # when one was, by the turnstile
        self._num_ahead = 0  # let in this turn, with a place in the queue to take
        for listener in sockets:
            listener.setblocking(False)

    def note_refusal(self) -> None:
        """One more was refused, by whomever."""
        second = int(self._loop.time())
        if second != self._second:
            self._second, self._num_refused = second, 0
        self._num_refused += 1
        if self._num_refused == BUSY_COUNT and self.listens.is_set():
            self._begin()

    def close(self) -> None:
        """Takes no more connections in."""
        self._stop_timer()
        for task in self._tasks:
            task.cancel()
        self._sockets = ()

    def _begin(self) -> None:
        if not self._sockets:
            return
        self.listens.clear()
        self._refused_s = self._loop.time()
        for listening in self._server.servers:
            listening.close()  # and with it its duplicate; the system goes on taking connections for us
        self._server.servers = []
        self._timer = self._loop.call_later(PERIOD_S, self._turn)

    def _turn(self) -> None:
        began_s = time.monotonic()
        self._num_ahead = 0
        num_taken = sum(map(self._take_in, self._sockets))
        if self._loop.time() - self._refused_s > LINGER_S:
            self._start(self._end())
        else:
            took_s = time.monotonic() - began_s  # so long again is for everybody else, however many ask at once
            self._timer = self._loop.call_later(took_s if num_taken >= _MAX_AT_ONCE else PERIOD_S, self._turn)

    async def _end(self) -> None:
        """The server listens again."""
        try:
            for listener in self._sockets[len(self._server.servers) :]:
                await self._listen(listener.dup())
            self.listens.set()
        except Exception as error:  # whatever it is: who comes is taken in as now, and this is tried again
            _log.warning("the server cannot listen as usual: %s", error)
            self._timer = self._loop.call_later(LINGER_S, self._turn)

    async def _listen(self, duplicate: socket.socket) -> None:
        try:
            backlog = self._server.config.backlog
            listening = await self._loop.create_server(self._protocol, sock=duplicate, backlog=backlog)
        except BaseException:
            duplicate.close()
            raise
        self._server.servers.append(listening)

    def _take_in(self, listener: socket.socket) -> int:
        """Whoever has come; how many."""
        for count in range(_MAX_AT_ONCE):
            try:
                connection, address = listener.accept()
            except OSError:  # nobody is left, or no descriptor
                return count
            try:
                self._admit(listener, connection, address)
            except Exception as failure:
                connection.close()
                if not isinstance(failure, OSError):  # else the client is gone
                    _log.error("a connection could not be taken in", exc_info=failure)
        return _MAX_AT_ONCE

    def _admit(self, listener: socket.socket, connection: socket.socket, address: Any) -> None:
        try:
            data = connection.recv(_MAX_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = b""
        refusal = self._refusal(data, self._places[listener.fileno()], address)
        if refusal is None:
            connection.setblocking(False)
            self._start(self._loop.connect_accepted_socket(self._protocol, connection))
            return
        self._refused_s = self._loop.time()
        self._server.server_state.total_requests += 1
        connection.recv(_MAX_BYTES, socket.MSG_DONTWAIT)  # else what is unread when it closes takes the answer back
        connection.send(refusal, _WITH_END)
        connection.close()

    def _refusal(self, data: bytes, here: Any, address: Any) -> bytes | None:
        """What a connection that begins with the data is told; None lets it in."""
        headers = dated_headers(self._server.server_state)
        date = headers[0][1]
        words = words_of(data, address)
        told = None if words is None else self._door.refusal_of(words, self._num_ahead, date)
        if told is not None:
            return told
        request = read_request(data)
        if request is None or not are_headers_allowed(self._limits, request.url, request.headers):
            return None
        scope = self._scope(request, here, address)
        answer = self._door.refusal(scope, self._num_ahead)
        if answer is None:
            self._num_ahead += self._door.takes_room(scope)
            return None
        told = answer_bytes(headers, answer, closes=True)
        if words is not None and words.num_behind == request.num_body_bytes:
            self._door.keep(words, scope, answer, date, told)
        return told

    def _scope(self, request: Request, here: Any, address: Any) -> dict[str, Any]:
        """As uvicorn makes it; `here` is where the listener is."""
        url = httptools.parse_url(request.url)
        root_path = self._server.config.root_path
        return {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": root_path + url.path.decode("ascii"),
            "raw_path": root_path.encode("ascii") + url.path,
            "query_string": url.query or b"",
            "root_path": root_path,
            "headers": request.headers,
            "server": here[:2] if isinstance(here, tuple) else (here, None),
            "client": address[:2] if isinstance(address, tuple) and address else None,
            "state": {},
        }

    def _protocol(self) -> asyncio.Protocol:
        server = self._server
        make: Callable[..., asyncio.Protocol] = server.config.http_protocol_class
        return make(config=server.config, server_state=server.server_state, app_state=server.lifespan.state)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.warning("a connection could not be taken in: %s", failure)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Request(NamedTuple):
    """One that is there as a whole."""

    method: str
    url: bytes
    headers: list[tuple[bytes, bytes]]
    num_body_bytes: int


def words_of(data: bytes, address: Any) -> Words | None:
    """By which a request is known that begins a connection; None where its headers are not complete.

    They know it only if the body is all that is behind them: else it is chunked, or they are empty lines before it.
    """
    end = data.find(_END_OF_HEAD)
    if end < 0:
        return None
    num_behind = len(data) - end - len(_END_OF_HEAD)
    return Words(sha256(data[:end]).digest(), num_behind, address[0] if isinstance(address, tuple) else "")


def read_request(data: bytes) -> Request | None:
    """What the bytes of a new connection are; None for anything but one whole plain request of HTTP/1.1."""
    collected = _Collected()
    parser = httptools.HttpRequestParser(collected)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    is_one = collected.num_begun == collected.num_complete == 1 and not collected.has_trailers
    if not is_one or parser.get_http_version() != "1.1":
        return None
    url = collected.url
    if not url.startswith(b"/") or b"%" in url or not url.isascii():
        return None
    if any(name == b"expect" for name, _ in collected.headers):
        return None
    return Request(parser.get_method().decode("ascii"), url, collected.headers, collected.num_body_bytes)


class _Collected:
    """The parser's callbacks."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.num_begun = self.num_complete = self.num_body_bytes = 0
        self.has_trailers = False
        self._has_headers = False

    def on_message_begin(self) -> None:
        self.num_begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_headers:
            self.has_trailers = True
        else:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._has_headers = True

    def on_body(self, body: bytes) -> None:
        self.num_body_bytes += len(body)

    def on_message_complete(self) -> None:
        self.num_complete += 1
