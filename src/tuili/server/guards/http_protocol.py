"""uvicorn's HTTP/1.1 protocol with limits it lacks: how long headers may be, and how long they may take to come.

Answers what is no HTTP with a JSON body, and lets go of a client that does not read: the application may drop the
connection while it answers, and what was answered waits for nobody for ever.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import time
from collections.abc import Callable, MutableMapping, Sequence
from email.utils import formatdate
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tuili.errors import BodyTimeoutError, HeadersTooLargeError, InvalidRequestError, TuiliError
from tuili.server.error_bodies import error_headers, plain_body
from tuili.server.http_settings import HttpSettings

_LINGER_S = 1.0
ABORT = "tuili.abort"  # an extension of the ASGI scope: "call" closes the connection, unsent data and all


class Answer(Protocol):
    """To a request that is not to be looked at any further."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...
    @property
    def body(self) -> bytes: ...


Door = Callable[[MutableMapping[str, Any]], Answer | None]  # asked about an ASGI scope


def guarded_protocol(settings: HttpSettings, door: Door | None = None) -> Any:
    """What uvicorn's `http` setting takes; whom the door answers, the application never hears of."""
    return functools.partial(GuardedHttpProtocol, settings, door=door)


class GuardedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, limits: HttpSettings, *args: Any, door: Door | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._door = door
        self._num_header_bytes = 0  # since anything else came
        self._is_reading_headers = True
        self._num_trailers = 0
        self._num_discarded = 0
        self._refusal: TuiliError | None = None
        self._is_deaf = False  # what came is no HTTP, which is told behind the answers that are due
        self._is_lingering = False
        self._answered: RequestResponseCycle | None = None  # or about to be; others may wait behind it
        self._timer: asyncio.TimerHandle | None = None  # of headers, of a body nobody wants, of lingering
        self._unread_timer: asyncio.TimerHandle | None = None  # of complete answers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_watching()
        if self._answered is not None and not self._answered.response_complete:  # uvicorn tells the last to come alone
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering or self._is_deaf:
            return
        self._num_header_bytes += len(data)
        super().data_received(data)
        if self._num_header_bytes > self._limits.max_header_bytes:
            self._too_large()
            self.send_400_response("")
        self._expect_another()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"call": self._abort}}
        self._expect_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_reading_headers:
            super().on_header(name, value)
        else:  # behind the body, where no key and no host is looked for
            self._num_trailers += 1
        if len(self.headers) + self._num_trailers > self._limits.max_headers:
            raise self._too_large()

    def on_headers_complete(self) -> None:
        self._is_reading_headers = False
        self._num_header_bytes = self._num_trailers = self._num_discarded = 0
        self._stop_timer()
        if not are_headers_allowed(self._limits, self.url, self.headers):
            raise self._too_large()
        dated_headers(self.server_state)
        super().on_headers_complete()
        if self.expect_100_continue or not self.cycle.keep_alive:
            close = functools.partial(self._close_behind, self.cycle, expects=self.expect_100_continue)
            self.cycle.transport = cast(asyncio.Transport, _ClosesLater(self.transport, close))

    def on_body(self, body: bytes) -> None:
        self._num_header_bytes = 0
        super().on_body(body)
        if self.cycle.response_complete:  # many clients read no answer before they have sent all
            if not self._num_discarded:
                self._start_timer(self._limits.body_timeout_s, self.transport.abort)
            self._num_discarded += len(body)
            if self._num_discarded > self._limits.max_body_bytes:
                self.transport.abort()

    def on_message_complete(self) -> None:
        self._num_header_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._stop_watching()
        self._watch_unread(None)
        is_last = not self.pipeline
        super().on_response_complete()
        if self._is_deaf and is_last and not self.transport.is_closing():
            self._refuse()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when its parser gives up, a limit of ours included."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        is_answered = self.cycle is None or self.cycle.response_complete
        is_broken = not is_answered and self.cycle.more_body  # the request itself, not what comes behind it
        if is_broken and self.pipeline:
            self.pipeline.popleft()  # nothing has begun on it
            is_broken = False
        if is_broken and self.cycle.response_started:  # nothing may be put into an answer
            self.transport.close()
        elif is_broken:
            self.cycle.scope["extensions"].clear()  # so that nobody aborts what the refusal is sent on
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._refuse()
        elif not is_answered:
            self._is_deaf = True
        else:
            self._refuse()

    def _refuse(self) -> None:
        error = self._refusal or InvalidRequestError("this is no HTTP/1.1 request")
        body = plain_body(error, "")
        headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in dict(headers).items())
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, body))
        self._linger()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        is_read = not self.flow.write_paused  # else the application waits, and what comes behind with it
        answer = self._door(cycle.scope) if self._door is not None and is_read else None  # type: ignore[arg-type]
        if answer is None:
            super()._start_asgi_task(cycle, app)
        else:  # once all that came with the headers has been taken in
            self.loop.call_soon(self._turn_away, cycle, answer)

    def _turn_away(self, cycle: RequestResponseCycle, answer: Answer) -> None:
        if cycle.disconnected or self._is_lingering:
            return
        cycle.response_started = cycle.response_complete = True
        if cycle.waiting_for_100_continue:  # nobody can tell whether the body comes next, or another request
            cycle.keep_alive = False
        self.transport.write(answer_bytes(cycle.default_headers, answer, closes=not cycle.keep_alive))
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def _close_behind(self, cycle: RequestResponseCycle, *, expects: bool) -> None:
        """Closes behind the last answer: at once only where the client has sent all it will."""
        if expects or cycle.more_body:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Closes a little later: the kernel would take back an answer to a client that is still sending."""
        self._is_lingering = True
        self.pipeline.clear()  # nothing can be answered any more
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timer(_LINGER_S, self.transport.close)

    def _expect_headers(self) -> None:
        self._is_reading_headers = True
        self._start_timer(self._limits.header_timeout_s, self._give_up)

    def _expect_another(self) -> None:
        """What comes behind a complete answer, as its request's body, stops uvicorn's timer of idle connections."""
        is_answered = self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing()
        if is_answered and self._timer is None and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _watch_unread(self, num_before: int | None) -> None:
        """Lets go of a client that for so long has read nothing of an answer that is complete."""
        num_unread = self.transport.get_write_buffer_size()
        if num_before is not None and num_unread >= num_before:
            self._abort()
        elif num_unread:
            self._unread_timer = self.loop.call_later(self._limits.send_timeout_s, self._watch_unread, num_unread)

    def _stop_watching(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _abort(self) -> None:
        """Resets the connection, as the kernel would go on offering what it has to a client that does not read."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _start_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._num_header_bytes:
            self._refusal = BodyTimeoutError(f"the headers were not complete after {self._limits.header_timeout_s:g} s")
            self.send_400_response("")
        else:
            self.transport.close()

    def _too_large(self) -> TuiliError:
        self._refusal = HeadersTooLargeError(
            f"headers may be at most {self._limits.max_headers} and {self._limits.max_header_bytes} bytes"
        )
        return self._refusal


def are_headers_allowed(limits: HttpSettings, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether what comes before a body is no more than it may be."""
    num_bytes = len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
    return len(headers) <= limits.max_headers and num_bytes <= limits.max_header_bytes


def answer_bytes(default_headers: Sequence[tuple[bytes, bytes]], answer: Answer, *, closes: bool) -> bytes:
    """As it is sent; closes: and nothing behind it."""
    headers = [*default_headers, *answer.headers]
    if closes:
        headers.append((b"connection", b"close"))
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return b"%b%b\r\n%b" % (STATUS_LINE[answer.status], lines, answer.body)


def dated_headers(state: ServerState) -> list[tuple[bytes, bytes]]:
    """Headers of every answer, with the time: uvicorn's own clock for it would wake an idle server every second."""
    date = _http_date(int(time.time()))
    if (b"date", date) not in state.default_headers:
        others = [header for header in state.default_headers if header[0] != b"date"]
        state.default_headers = [(b"date", date), *others]
    return state.default_headers


class _ClosesLater:
    """The transport of an answer whose client may be sending its body by the time it is closed."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


@functools.lru_cache(maxsize=1)
def _http_date(now_s: int) -> bytes:
    return formatdate(now_s, usegmt=True).encode("ascii")
