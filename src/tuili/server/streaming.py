"""Sends an Answering to its client: as a stream that is written as it comes, or collected for one body.

Headers go out at once; silence is broken by keep-alives, by the clock; a client that stops reading is let go; what
fails on the way is told by one event. A client that leaves cancels the task all this runs in (edge.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuili.errors import ClientGoneError, TuiliError
from tuili.server.answering import Answering, Events
from tuili.server.dialect import StreamRenderer
from tuili.server.error_bodies import internal_error
from tuili.server.http_settings import HttpSettings
from tuili.types import Failed

_log = logging.getLogger(__name__)


async def collect(request: Request, answering: Answering) -> Events:
    """All events of a blocking answer. Raises the error of a Failed, and what cut it."""
    events: Events = []
    try:
        with answering.reading():
            async with aclosing(aiter(answering)) as steps:
                async for arrived in steps:
                    for _, event in arrived:
                        if type(event) is Failed:
                            raise event.error
                    events += arrived
    finally:
        await answering.aclose()
    return events


async def stream(
    request: Request, answering: Answering, renderer: StreamRenderer, *, interval_s: float = math.inf
) -> Response:
    """A response that writes events as they come; silence is broken after interval_s, or sooner by the settings."""
    settings: HttpSettings = request.app.state.serving.settings
    interval_s = min(interval_s, settings.keep_alive_interval_s)
    return AnswerStream(answering, renderer, interval_s, settings.send_timeout_s)


class AnswerStream(Response):
    """SSE or lines of JSON, as the renderer writes them. Ends in one terminal event, whatever happens."""

    def __init__(
        self, answering: Answering, renderer: StreamRenderer, interval_s: float, send_timeout_s: float
    ) -> None:
        self.status_code = 200
        self.background = None
        self._answering = answering
        self._renderer = renderer
        self._interval_s = interval_s
        self._send_timeout_s = send_timeout_s
        self._sent_s = 0.0  # when something was last sent
        self._sending_since_s: float | None = None
        self.init_headers(
            {
                "content-type": renderer.media_type,
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would hold events back
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._sent_s = time.monotonic()
        heart = asyncio.create_task(self._beat())
        try:
            ending = await self._told()
            heart.cancel()
            await self._answering.aclose()  # its place is free before the client knows that it is
            async with asyncio.timeout(self._send_timeout_s):
                await self._write(ending, is_last=True)
        except TimeoutError:
            raise ClientGoneError("the client does not read") from None
        finally:
            heart.cancel()
            await self._answering.aclose()

    async def _told(self) -> bytes:
        """Writes events; the bytes that end the stream are left to be sent."""
        try:
            with self._answering.reading():
                await self._write(self._renderer.start())
                async with aclosing(aiter(self._answering)) as steps:
                    async for events in steps:
                        failed = next((n for n, (_, event) in enumerate(events) if type(event) is Failed), None)
                        await self._write(self._renderer.push(events if failed is None else events[:failed]))
                        if failed is not None:
                            raise events[failed][1].error  # type: ignore[union-attr]
        except ClientGoneError:
            raise
        except TuiliError as error:
            self._answering.caller.notes["error"] = error.code
            return self._renderer.fail(error)
        except Exception as failure:
            request_id = self._answering.caller.request_id
            _log.error("request %s failed while it was streamed", request_id, exc_info=failure)
            return self._renderer.fail(internal_error(request_id))
        return b""

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        if not data and not is_last:
            return
        self._sending_since_s = self._sent_s = time.monotonic()
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        finally:
            self._sending_since_s = None

    async def _beat(self) -> None:
        """Breaks silence, and lets go of clients that do not read."""
        while True:
            since_s = self._sending_since_s
            wait_s = self._send_timeout_s if since_s is not None else self._interval_s
            due_s = (self._sent_s if since_s is None else since_s) + wait_s
            if (left_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(min(left_s, self._interval_s, self._send_timeout_s))
            elif since_s is not None:
                self._answering.cut(ClientGoneError("the client does not read"))
                return
            else:
                data = self._renderer.keep_alive(self._answering.progress())
                self._sent_s = time.monotonic()
                if not data:
                    continue
                try:
                    async with asyncio.timeout(self._send_timeout_s):
                        await self._send({"type": "http.response.body", "body": data, "more_body": True})
                except TimeoutError:
                    self._answering.cut(ClientGoneError("the client does not read"))
                    return
