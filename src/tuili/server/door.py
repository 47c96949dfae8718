"""Refuses, at their headers, requests that could only wait in vain: no task, no layers, none of the body.

Where many times more is asked than can be answered, refusals must not take the processor from the answers. The checks
are those of the layers, so that a refusal says what theirs would. Knows ASGI scopes; no sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from fastapi.routing import APIRoute
from starlette._utils import get_route_path
from starlette.types import Scope

from tuili.errors import QueueFullError, TuiliError
from tuili.server.caller import Caller, new_caller
from tuili.server.error_bodies import ErrorBodies, Headers, error_headers
from tuili.server.guards.route_scopes import RouteScopes
from tuili.server.repeats import Repeats, Words
from tuili.server.request_log import RequestLog, line_of
from tuili.server.serving import Serving
from tuili.server.tracing import Tracer

Check = Callable[[Scope], None]


class Refusal(NamedTuple):
    """An answer, whole."""

    status: int
    headers: Headers
    body: bytes


class Door:
    """Asked about every request as soon as its headers are complete."""

    def __init__(
        self,
        serving: Serving,
        *,
        routes: RouteScopes,
        check: Check,
        bodies: ErrorBodies,
        log: RequestLog,
        tracer: Tracer | None,
    ) -> None:
        """`check` is what the layers find wrong with a request before there is a question of room."""
        self._serving = serving
        self._routes = routes
        self._check = check
        self._bodies = bodies
        self._log = log
        self._tracer = tracer
        self._repeats = Repeats(serving, log)
        self.on_refusal: Callable[[], None] | None = None

    def takes_room(self, scope: Scope) -> bool:
        """Whether a request that is let in will. None does that the layers refuse: it would keep others out."""
        if self._queueing_route(scope) is None:
            return False
        new_caller(scope)
        try:
            self._check(scope)
        except TuiliError:
            return False
        return True

    def refusal(self, scope: Scope, num_ahead: int = 0) -> Refusal | None:
        """What a request is refused with, if it queues and there is no room; it is in the log by then.

        num_ahead who were let in have yet to take theirs.
        """
        if self._serving.has_room(num_ahead):
            return None
        route = self._queueing_route(scope)
        if route is None:
            return None
        began_s = time.monotonic()
        caller = new_caller(scope)
        try:
            self._check(scope)
            scope["route"] = route
            caller.asks_model = True
            self._serving.check_room(num_ahead)
        except TuiliError as error:
            return self._told(scope, caller, error, began_s)
        return None

    def refusal_of(self, words: Words, num_ahead: int, date: bytes) -> bytes | None:
        """The whole answer of that date to who asks in the words of somebody just refused; it is in the log by then."""
        return self._repeats.find(words, num_ahead, date)

    def keep(self, words: Words, scope: Scope, refusal: Refusal, date: bytes, answer: bytes) -> None:
        """Has others who ask in those words answered so, for as long as it is right; spans are of one request each."""
        if refusal.status == QueueFullError.status and self._tracer is None:
            caller: Caller = scope["state"]["caller"]
            line = line_of(scope, caller, refusal.status, 0.0, len(refusal.body))
            self._repeats.keep(words, caller, date, answer, line)

    def _queueing_route(self, scope: Scope) -> APIRoute | None:
        found = self._routes.plain(scope)
        return found.route if found is not None and found.queues else None

    def _told(self, scope: Scope, caller: Caller, error: TuiliError, began_s: float) -> Refusal:
        body = self._bodies.body(get_route_path(scope), scope["headers"], error, caller.request_id)
        headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), *caller.told_headers()]
        seconds = time.monotonic() - began_s
        self._log.add(scope, caller, error.status, seconds, len(body))
        if self._tracer is not None:
            self._tracer.record(scope, caller, error.status, seconds)
        if self.on_refusal is not None:
            self.on_refusal()
        return Refusal(error.status, headers, body)
