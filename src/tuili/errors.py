"""The error tree: every failure a user can see, with the HTTP status and code it maps to.

TuiliError
 ├─ InvalidRequestError (400, also ValueError)   a value of a request or a flag
 │   ├─ ContextLengthError                       prompt and limits do not fit the context
 │   └─ ChatTemplateError                        a template refused, failed or overran its bounds
 ├─ ModelFileError (400, also ValueError)        a file is damaged, hostile or inconsistent
 │   └─ UnsupportedModelError                    well formed, but asks for what is not implemented
 ├─ AuthenticationError (401)                    no key, or none that is known
 ├─ ForbiddenError (403)                         a foreign host or origin, a scope the key has not
 ├─ ModelNotFoundError (404)                     no such model here or at its source
 ├─ RouteNotFoundError (404)                     no such path
 ├─ MethodNotAllowedError (405)                  the path exists, for other methods
 ├─ BodyTimeoutError (408)                       a request did not arrive in time
 ├─ ConflictError (409)                          a name is busy
 ├─ BodyTooLargeError (413)                      a request is larger than allowed
 ├─ MediaTypeError (415)                         a body that is no JSON
 ├─ QueueFullError (429)                         try again later
 ├─ HeadersTooLargeError (431)                   too many headers, or too long
 ├─ ClientGoneError (499)                        the client left; nobody is told but the log
 ├─ DownloadError (502)                          a source answered wrongly or not at all
 ├─ PeerError (502)                              a program to compare with is missing or failed
 ├─ EngineUnavailableError (503)                 loading, draining, restarting
 │   └─ DeviceFailureError                       a GPU's driver lets this process compute no more
 ├─ DeadlineError (504)                          no answer within the time allowed
 ├─ InsufficientMemoryError (507)                the model or its cache does not fit
 └─ InsufficientStorageError (507)               the disk is full

A message names the field or file, what was found and what is allowed. It never holds a
traceback, an address or a path the caller did not give. Files may have put anything into it, so it is
made one line of at most MAX_MESSAGE_CHARS printable characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

MAX_MESSAGE_CHARS = 1000
_KEPT_END = 300  # of a message that is cut: what is allowed comes last


class TuiliError(Exception):
    """Root of everything raised on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 1
    retry_after_s: float | None = None  # when it is worth trying again, where that is known

    def __init__(self, message: str) -> None:
        super().__init__(bounded_line(message))


def bounded_line(message: str) -> str:
    """The message as one line of at most MAX_MESSAGE_CHARS printable characters, its middle cut out if need be."""
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[: MAX_MESSAGE_CHARS - _KEPT_END - 5]} ... {message[-_KEPT_END:]}"
    return message if message.isprintable() else "".join(c if c.isprintable() else " " for c in message)


class InvalidRequestError(TuiliError, ValueError):
    """A value is out of range or of the wrong type.

    `param` names the field as the caller wrote it, or is None when no single field is to blame.
    """

    status = 400
    code = "invalid_request"
    exit_code = 2

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """The prompt, or prompt plus requested output, exceeds the context.

    `numbers` are prompt_tokens, n_ctx and, where it was given, max_tokens, for clients that shorten and ask again.
    """

    code = "context_length_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, numbers: Mapping[str, int | None] | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.numbers = {name: value for name, value in (numbers or {}).items() if value is not None}


class ChatTemplateError(InvalidRequestError):
    """A chat template is malformed, raised, or exceeded its time or size bound."""

    code = "chat_template_error"


class ModelFileError(TuiliError, ValueError):
    """A model file or configuration is damaged, hostile or contradicts itself."""

    status = 400
    code = "invalid_model_file"
    exit_code = 2


class UnsupportedModelError(ModelFileError):
    """The model is well formed but needs something that is not implemented."""

    code = "unsupported_model"


class ModelNotFoundError(TuiliError):
    """No model of that name is stored, catalogued or offered by its source."""

    status = 404
    code = "model_not_found"


class AuthenticationError(TuiliError):
    """No API key was given, or none that is known."""

    status = 401
    code = "invalid_api_key"


class ForbiddenError(TuiliError):
    """The caller is known, or of no interest, and may not: a foreign Host or Origin, a scope the key has not."""

    status = 403
    code = "forbidden"


class RouteNotFoundError(TuiliError):
    """The server has nothing at this path."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(TuiliError):
    """The path exists, for other methods: those in `allowed`, where they are known."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class BodyTimeoutError(TuiliError):
    """A request's headers or body did not arrive in time."""

    status = 408
    code = "request_timeout"


class ConflictError(TuiliError):
    """The name is taken by something else that is going on."""

    status = 409
    code = "conflict"


class BodyTooLargeError(TuiliError):
    """A request's body is larger than allowed."""

    status = 413
    code = "body_too_large"


class MediaTypeError(TuiliError):
    """A request's body is not said to be JSON."""

    status = 415
    code = "unsupported_media_type"


class QueueFullError(TuiliError):
    """Too many requests are waiting."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HeadersTooLargeError(TuiliError):
    """A request has too many headers, or too long ones."""

    status = 431
    code = "headers_too_large"


class ClientGoneError(TuiliError):
    """The client closed its connection, or stopped reading, before its answer was complete."""

    status = 499
    code = "client_gone"


class DownloadError(TuiliError):
    """A model source failed: unreachable, wrong size, wrong checksum."""

    status = 502
    code = "download_failed"


class PeerError(TuiliError):
    """A program to compare with is missing, answered wrongly or failed."""

    status = 502
    code = "peer_failed"


class EngineUnavailableError(TuiliError):
    """The engine is loading, draining, restarting or gone."""

    status = 503
    code = "engine_unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeviceFailureError(EngineUnavailableError):
    """A GPU failed in a way that its driver ends all computing of the process with: only a new process helps."""

    code = "device_failed"


class DeadlineError(TuiliError):
    """The answer was not complete within the time allowed."""

    status = 504
    code = "deadline_exceeded"


class InsufficientMemoryError(TuiliError):
    """Weights or cache do not fit the memory this process may use."""

    status = 507
    code = "insufficient_memory"


class InsufficientStorageError(TuiliError):
    """The disk is full."""

    status = 507
    code = "insufficient_storage"
