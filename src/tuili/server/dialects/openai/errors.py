"""Errors as OpenAI tells them: {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

import msgspec

from tuili.errors import ContextLengthError, TuiliError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_TOO_LONG = "This model's maximum context length is exceeded: "  # clients look for these words


def error_object(error: TuiliError, request_id: str | None = None) -> dict[str, Any]:
    """What stands under "error"."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    told = {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": error.code}
    if isinstance(error, ContextLengthError):
        told |= {"message": f"{_TOO_LONG}{error}", **error.numbers}
    return told if request_id is None else {**told, "request_id": request_id}


def render_error(error: TuiliError, request_id: str) -> bytes:
    """The body of an error."""
    return msgspec.json.encode({"error": error_object(error, request_id)})
