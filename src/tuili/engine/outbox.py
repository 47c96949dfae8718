"""Deltas on their way to the sinks of their requests, in order. Knows no sequences."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from tuili.engine.sequence import Sink
from tuili.types import TokenDelta

_log = logging.getLogger(__name__)


class Outbox:
    """What is put in stays there until it is delivered."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        """`drop` ends a request, without a word to its sink, which is broken."""
        self._drop = drop
        self._entries: deque[tuple[Sink, TokenDelta]] = deque()
        self._delivering = False

    def put(self, sink: Sink, delta: TokenDelta) -> None:
        self._entries.append((sink, delta))

    def put_all(self, sink: Sink, deltas: Iterable[TokenDelta]) -> None:
        self._entries.extend((sink, delta) for delta in deltas)

    def deliver(self) -> None:
        """Empties it in order. A sink may have the engine add and abort: what comes of that goes after."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._entries:
                sink, delta = self._entries.popleft()
                try:
                    sink(delta)
                except Exception as error:
                    _log.warning("the sink of request %r failed: it is aborted", delta.request_id, exc_info=error)
                    self._drop(delta.request_id)
                    self._entries = deque(entry for entry in self._entries if entry[1].request_id != delta.request_id)
        finally:
            self._delivering = False
