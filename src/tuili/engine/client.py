"""How everybody else talks to an engine, wherever it runs: asynchronously, by request and delta.

InProcess is the carrier for an engine in a thread of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator
from typing import Protocol

from tuili.engine.engine import EngineStats
from tuili.engine.loop import EngineLoop
from tuili.types import TokenDelta, TokenRequest


class EngineClient(Protocol):
    """One way in, whatever carries it."""

    def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """The request's deltas until each of its n answers has ended. Closing the iterator aborts the rest.

        Raises InvalidRequestError, ContextLengthError or EngineUnavailableError before the first delta.
        """

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one answer of it: its terminal delta comes all the same."""

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...


class InProcess:
    """EngineClient over an EngineLoop. Usable from any number of event loops."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}
        self._lock = threading.Lock()
        loop.add_listener(self._flush)

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        mailbox = self._open_mailbox()
        stream = Stream()
        unfinished = request.sampling.n

        def sink(delta: TokenDelta) -> None:
            mailbox.put(stream, delta)

        try:
            self._loop.submit(request, sink)
            try:
                while unfinished:
                    delta = await stream.get()
                    unfinished -= delta.finish_reason is not None
                    yield delta
            finally:
                if unfinished:
                    self._loop.abort(request.request_id, sink=sink)
        finally:
            self._close_mailbox(mailbox)

    def abort(self, request_id: str, index: int | None = None) -> None:
        self._loop.abort(request_id, index)

    def stats(self) -> EngineStats:
        return self._loop.stats()

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


class Stream:
    """The deltas of one request, within its event loop."""

    def __init__(self) -> None:
        self._deltas: deque[TokenDelta] = deque()
        self._arrived = asyncio.Event()

    def put(self, delta: TokenDelta) -> None:
        self._deltas.append(delta)
        self._arrived.set()

    async def get(self) -> TokenDelta:
        while not self._deltas:
            self._arrived.clear()
            await self._arrived.wait()
        return self._deltas.popleft()


class Mailbox:
    """Carries deltas from the engine's thread to one event loop, all of a step with one wake-up."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None:
        self.event_loop = event_loop
        self.num_users = 0
        self._entries: list[tuple[Stream, TokenDelta]] = []

    def put(self, stream: Stream, delta: TokenDelta) -> None:
        """Called in the engine's thread. Raises RuntimeError when the event loop is gone."""
        if self.event_loop.is_closed():
            raise RuntimeError("the event loop that asked is closed")
        self._entries.append((stream, delta))

    def flush(self) -> None:
        """Called in the engine's thread."""
        if self._entries:
            entries, self._entries = self._entries, []
            with contextlib.suppress(RuntimeError):  # closed since: nobody is left to read
                self.event_loop.call_soon_threadsafe(_hand_out, entries)


def _hand_out(entries: list[tuple[Stream, TokenDelta]]) -> None:
    for stream, delta in entries:
        stream.put(delta)
