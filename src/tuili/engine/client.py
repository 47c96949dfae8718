"""How everybody else talks to an engine, wherever it runs: asynchronously, by request and lists of deltas.

InProcess is the carrier for an engine in a thread of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from tuili.engine.loop import RequestLoop
from tuili.engine.stats import EngineHealth, EngineStats
from tuili.errors import TuiliError
from tuili.types import FinishReason, TokenDelta, TokenRequest


class EngineClient(Protocol):
    """One way in, whatever carries it."""

    def generate(self, request: TokenRequest) -> Stream:
        """Asks the engine, within an event loop; iterate for what comes until each answer has ended.

        Raises InvalidRequestError, ContextLengthError or EngineUnavailableError.
        """

    def check_request(self, request: TokenRequest) -> None:
        """Raises what `generate` would refuse the request with, without asking the engine."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one answer of it: its terminal delta comes all the same."""

    def stats(self) -> EngineStats:
        """As far as it is known."""

    @property
    def health(self) -> EngineHealth: ...

    def close(self) -> None: ...


class Stream:
    """The deltas of one request on their way to its reader, within an event loop.

    Iterate for what has come since last asked, of a step or of several. The engine has the request from the beginning:
    unless all of it is read it must be closed, which aborts the rest.
    """

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.on_leave: Callable[[], None] | None = None  # called once, when nobody reads any more
        self.unfinished = set(request.indexes)  # answers whose terminal delta has not come
        self._deltas: list[TokenDelta] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_left = False

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to get, now or ever."""
        return not self.unfinished and not self._deltas

    def put(self, deltas: Sequence[TokenDelta]) -> None:
        """Deltas that came together."""
        self._deltas += deltas
        for delta in deltas:
            if delta.finish_reason is not None:
                self.unfinished.discard(delta.index)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, reason: FinishReason, error: TuiliError | None = None, index: int | None = None) -> None:
        """Puts terminal deltas for every answer that has none, or for one."""
        indexes = sorted(self.unfinished) if index is None else self.unfinished & {index}
        self.put(
            [
                TokenDelta(request_id=self.request.request_id, index=i, token_ids=(), finish_reason=reason, error=error)
                for i in indexes
            ]
        )

    def lose(self, error: TuiliError) -> None:
        """The engine is gone, and nothing more will come of it."""
        self.end("error", error)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[TokenDelta]:
        if self.is_read or self._is_left:
            self.leave()
            raise StopAsyncIteration
        try:
            return await self._get()
        except BaseException:
            self.leave()
            raise

    async def aclose(self) -> None:
        """As leave."""
        self.leave()

    def leave(self) -> None:
        """Nobody reads any more. Doing it twice does no harm."""
        self._is_left = True
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave()

    async def _get(self) -> list[TokenDelta]:
        """All that has come since; waits for it."""
        while not self._deltas:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        deltas, self._deltas = self._deltas, []
        return deltas


class InProcess:
    """EngineClient over a RequestLoop. Usable from any number of event loops."""

    def __init__(self, loop: RequestLoop) -> None:
        self._loop = loop
        self._mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}
        self._lock = threading.Lock()
        loop.add_listener(self._flush)

    def generate(self, request: TokenRequest) -> Stream:
        mailbox = self._open_mailbox()
        stream = Stream(request)

        def sink(delta: TokenDelta) -> None:
            mailbox.put(stream, delta)

        def leave() -> None:
            if stream.unfinished:
                self._loop.abort(request.request_id, sink=sink)
            self._close_mailbox(mailbox)

        try:
            self._loop.submit(request, sink)
        except BaseException:
            self._close_mailbox(mailbox)
            raise
        stream.on_leave = leave
        return stream

    def check_request(self, request: TokenRequest) -> None:
        self._loop.check_request(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        self._loop.abort(request_id, index)

    def stats(self) -> EngineStats:
        return self._loop.stats()

    @property
    def health(self) -> EngineHealth:
        return EngineHealth(is_ready=self._loop.is_open, state="ready" if self._loop.is_open else "closed")

    def close(self) -> None:
        self._loop.close()

    def _flush(self) -> None:
        with self._lock:
            mailboxes = list(self._mailboxes.values())
        for mailbox in mailboxes:
            mailbox.flush()

    def _open_mailbox(self) -> Mailbox:
        event_loop = asyncio.get_running_loop()
        with self._lock:
            mailbox = self._mailboxes.setdefault(event_loop, Mailbox(event_loop))
            mailbox.num_users += 1
        return mailbox

    def _close_mailbox(self, mailbox: Mailbox) -> None:
        with self._lock:
            mailbox.num_users -= 1
            if not mailbox.num_users:
                del self._mailboxes[mailbox.event_loop]


class Mailbox:
    """Carries deltas from the engine's thread to one event loop, all of a step with one wake-up."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None:
        self.event_loop = event_loop
        self.num_users = 0
        self._entries: dict[Stream, list[TokenDelta]] = {}

    def put(self, stream: Stream, delta: TokenDelta) -> None:
        """Called in the engine's thread. Raises RuntimeError when the event loop is gone."""
        if self.event_loop.is_closed():
            raise RuntimeError("the event loop that asked is closed")
        self._entries.setdefault(stream, []).append(delta)

    def flush(self) -> None:
        """Called in the engine's thread."""
        if self._entries:
            entries, self._entries = self._entries, {}
            with contextlib.suppress(RuntimeError):  # closed since: nobody is left to read
                self.event_loop.call_soon_threadsafe(_hand_out, entries)


def _hand_out(entries: dict[Stream, list[TokenDelta]]) -> None:
    for stream, deltas in entries.items():
        stream.put(deltas)
