"""How large a body may be and how long it may take: checked while it arrives, before anybody has it in memory."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope

from tuili.errors import BodyTimeoutError, BodyTooLargeError, InvalidRequestError
from tuili.server.http_settings import HttpSettings


class BodyGuard:
    """The limits of every body."""

    def __init__(self, settings: HttpSettings) -> None:
        self._max_bytes = settings.max_body_bytes
        self._timeout_s = settings.body_timeout_s

    def limited(self, receive: Receive) -> Receive:
        """What raises BodyTooLargeError or BodyTimeoutError in its place."""
        return _Limited(receive, self._max_bytes, self._timeout_s).receive

    def check(self, scope: Scope) -> None:
        """Of what is announced. Raises InvalidRequestError or BodyTooLargeError."""
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit():
                    raise InvalidRequestError("content-length must be a number", param="content-length")
                if len(value) > 18 or int(value) > self._max_bytes:
                    raise _too_large(self._max_bytes)


class _Limited:
    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._ends_at_s: float | None = None  # on the loop's clock, from the first wait on
        self._num_bytes = 0
        self._is_complete = False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._ends_at_s is None:
            self._ends_at_s = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._ends_at_s):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeoutError(f"the body was not complete after {self._timeout_s:g} s") from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body may be at most {max_bytes} bytes")
