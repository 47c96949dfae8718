"""Refuses who asks in the very words of somebody just refused, as that one was, under an id of his own.

Clients of a full server ask again and again. To read, check and answer each anew takes code and data that a process
which wakes beside a busy engine finds in no cache; this takes a tenth of them. Knows no HTTP.
"""

from __future__ import annotations

from typing import NamedTuple

from tuili.server.caller import Caller, new_id
from tuili.server.request_log import Line, RequestLog, stamp
from tuili.server.serving import Serving

MAX_KEPT = 256


class Words(NamedTuple):
    """What a request is to be known by: two that have the same are answered the same, but for whom they name."""

    head: bytes  # sha256 of all that comes before the body: it may hold a key
    num_behind: int  # bytes: the body's
    address: str


class Told(NamedTuple):
    """An answer and its line of the log, with what is another one's in them."""

    request_id: str
    date: bytes
    answer: bytes
    line: Line


class Repeats:
    """What was told since the queue is as full as it is."""

    def __init__(self, serving: Serving, log: RequestLog) -> None:
        self._serving = serving
        self._log = log
        self._fullness: tuple[int, float] | None = None  # as it was told
        self._told: dict[Words, Told] = {}

    def find(self, words: Words, num_ahead: int, date: bytes) -> bytes | None:
        """The answer of that date, which is in the log by then; None for who must be looked at."""
        if self._serving.has_room(num_ahead):
            return None
        admission = self._serving.admission
        fullness = None if self._serving.is_draining else admission.fullness(num_ahead)
        if fullness != self._fullness:
            self._fullness = fullness
            self._told.clear()
        told = self._told.get(words)
        if told is None:
            return None
        admission.num_refused += 1
        request_id = new_id()
        text = told.line.text.replace(told.line.time.encode(), (now := stamp()).encode(), 1)
        text = text.replace(told.request_id.encode(), request_id.encode())
        self._log.put(Line(told.line.counted, now, text))
        return told.answer.replace(told.date, date).replace(told.request_id.encode(), request_id.encode())

    def keep(self, words: Words, caller: Caller, date: bytes, answer: bytes, line: Line) -> None:
        """That those words were just answered so, as the queue is full."""
        if self._fullness is None:
            return
        if len(self._told) == MAX_KEPT:
            del self._told[next(iter(self._told))]
        self._told[words] = Told(caller.request_id, date, answer, line)
