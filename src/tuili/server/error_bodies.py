"""How errors are told over HTTP: status, headers, and a body in the words of the dialect whose path was asked.

Knows the error tree and the dialects' writers; no wire format itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from tuili.errors import (
    AuthenticationError,
    BodyTimeoutError,
    InvalidRequestError,
    MethodNotAllowedError,
    TuiliError,
)
from tuili.server.dialect import Dialect, is_model_list

Headers = list[tuple[bytes, bytes]]
Write = Callable[[TuiliError, str], bytes]
MAX_RETRY_AFTER_S = 60
_NO_RETRY = (409, 500, 507)  # statuses that clients would try again, in vain


class ErrorBodies:
    """Writes errors."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        writers = [(prefix, dialect.render_error) for dialect in dialects for prefix in dialect.prefixes]
        self._writers: list[tuple[str, Write]] = sorted(writers, key=lambda entry: -len(entry[0]))
        self._writer_of = lru_cache(maxsize=64)(self._find)  # prefixes are many, and so are refusals of a full server
        self._known_by: dict[bytes, Write] = {
            dialect.models.header.encode("ascii"): dialect.render_error
            for dialect in dialects
            if dialect.models is not None and dialect.models.header is not None
        }

    def body(self, path: str, headers: Headers, error: TuiliError, request_id: str) -> bytes:
        """What the dialect of that path says, or of the client where several have it, else a plain object."""
        if is_model_list(path):
            for name, _ in headers:
                if name in self._known_by:
                    return self._known_by[name](error, request_id)
        return self._writer_of(path)(error, request_id)

    def _find(self, path: str) -> Write:
        return next((render for prefix, render in self._writers if path.startswith(prefix)), plain_body)


def plain_body(error: TuiliError, request_id: str) -> bytes:
    """The body of an error outside all dialects."""
    told: dict[str, object] = {"message": str(error), "code": error.code, "request_id": request_id}
    if isinstance(error, InvalidRequestError):
        told["param"] = error.param
    return msgspec.json.encode({"error": told})


def error_headers(error: TuiliError) -> Headers:
    """What a client's retries are steered by, and what each status calls for."""
    headers: Headers = [(b"content-type", b"application/json")]
    if error.status in (429, 503):
        wait_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        headers.append((b"retry-after", b"%d" % min(max(math.ceil(wait_s), 1), MAX_RETRY_AFTER_S)))
    if error.status in _NO_RETRY:
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, AuthenticationError):
        headers.append((b"www-authenticate", b'Bearer realm="tuili"'))
    if isinstance(error, MethodNotAllowedError) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode("ascii")))
    if isinstance(error, BodyTimeoutError):  # nobody waits for the rest
        headers.append((b"connection", b"close"))
    return headers


def internal_error(request_id: str) -> TuiliError:
    """What is told of a bug of ours: where the log says more."""
    return TuiliError(f"internal error; the server's log has it under request {request_id}")
