"""The outermost layer: every request gets an id, one answer, one line in the log, and an end when its client leaves.

Errors become answers here and nowhere else. Knows ASGI; no wire format, no model.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuili.errors import ClientGoneError, TuiliError
from tuili.server.caller import Caller, new_caller
from tuili.server.error_bodies import ErrorBodies, error_headers, internal_error
from tuili.server.guards.http_protocol import ABORT
from tuili.server.request_log import RequestLog
from tuili.server.tracing import Tracer

_log = logging.getLogger(__name__)


class Edge:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, bodies: ErrorBodies, log: RequestLog, tracer: Tracer | None) -> None:
        self._app = app
        self._bodies = bodies
        self._log = log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._exchange(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = new_caller(scope)
        awaits_word = any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"])
        exchange = Exchange(caller, receive, send, awaits_word=awaits_word)
        started_s = time.monotonic()
        try:
            error = await self._served(scope, exchange)
            if error is not None:
                await self._tell(scope, exchange, error)
        finally:
            exchange.close()
            await caller.exits.aclose()
            seconds = time.monotonic() - started_s
            self._log.add(scope, caller, exchange.status, seconds, exchange.num_bytes)
            if self._tracer is not None:
                self._tracer.record(scope, caller, exchange.status, seconds)

    async def _served(self, scope: Scope, exchange: Exchange) -> TuiliError | None:
        """Runs the application; what it failed with, if there is still somebody to tell."""
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.take_gone():
                raise
            exchange.status = ClientGoneError.status
            return None
        except ClientGoneError:
            exchange.status = ClientGoneError.status
            await _drop_connection(scope)
            return None
        except TuiliError as error:
            if error.status >= 500:
                _log.warning("request %s: %s", exchange.caller.request_id, error)
            return error
        except Exception as failure:
            _log.error("request %s failed", exchange.caller.request_id, exc_info=failure)
            if exchange.is_started:  # nothing that is well formed can follow what was sent
                await _drop_connection(scope)
            return internal_error(exchange.caller.request_id)
        return None

    async def _tell(self, scope: Scope, exchange: Exchange, error: TuiliError) -> None:
        if exchange.is_started:
            return
        body = self._bodies.body(get_route_path(scope), scope["headers"], error, exchange.caller.request_id)
        headers = [*error_headers(error), (b"content-length", b"%d" % len(body))]
        await exchange.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


class Exchange:
    """A request and its answer on their way. Once the request has been read, its client is watched.

    awaits_word: the client sends its body when it is told to. Answered instead, it may or may not send it: nobody can
    tell what comes next, and the connection ends.
    """

    def __init__(self, caller: Caller, receive: Receive, send: Send, *, awaits_word: bool) -> None:
        self.caller = caller
        self._awaits_word = awaits_word
        self.status = 0
        self.num_bytes = 0
        self.is_started = False
        self._is_complete = False
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = asyncio.Event()

    async def receive(self) -> Message:
        if self._watcher is not None:
            await self._has_left.wait()
            return {"type": "http.disconnect"}
        self._awaits_word = False
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its request was complete")
        if not message.get("more_body", False):
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started, self.status = True, message["status"]
            end = [(b"connection", b"close")] if self._awaits_word else []
            message["headers"] = [*message.get("headers", ()), *self.caller.told_headers(), *end]
        else:
            self.num_bytes += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    def take_gone(self) -> bool:
        """Whether the task was cancelled because the client left; undoes that."""
        if not self._has_left.is_set() or self._task is None:
            return False
        self._task.uncancel()
        return True

    def close(self) -> None:
        """Ends the watch."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left.set()
        if not self._is_complete and self._task is not None:
            self._task.cancel()


async def _drop_connection(scope: Scope) -> None:
    """Closes at once, unsent data and all: somebody who does not read would keep it open for ever."""
    extension = scope.get("extensions", {}).get(ABORT)
    if extension is not None:
        extension["call"]()
        await asyncio.sleep(0)  # until it is known to be lost
