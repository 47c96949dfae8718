"""Ollama's API: /api/generate, /api/chat and what clients ask about models. Lines of JSON, durations in nanoseconds."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter

from tuili.errors import TuiliError
from tuili.server.dialect import Dialect
from tuili.server.dialects.ollama.answer_routes import add_answer_routes
from tuili.server.dialects.ollama.model_routes import add_model_routes
from tuili.server.dialects.ollama.other_routes import add_other_routes


def _router() -> APIRouter:
    router = APIRouter()
    add_answer_routes(router)
    add_model_routes(router)
    add_other_routes(router)
    return router


def render_error(error: TuiliError, request_id: str) -> bytes:
    """One text, which says everything that clients are told."""
    return msgspec.json.encode({"error": str(error)})


DIALECT = Dialect(name="ollama", prefixes=("/api",), router=_router(), render_error=render_error)
