"""OpenAI's HTTP API, with vLLM's additions: docs/http_api.md has every field."""

from __future__ import annotations

from fastapi import APIRouter

from tuili.server.dialect import Dialect, add_missing, scoped
from tuili.server.dialects.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tuili.server.dialects.openai.chat import create_chat_completion
from tuili.server.dialects.openai.completions import create_completion
from tuili.server.dialects.openai.errors import render_error
from tuili.server.dialects.openai.missing_routes import MISSING
from tuili.server.dialects.openai.models import MODELS
from tuili.server.dialects.openai.tokenize import detokenize, tokenize

_SSE = "text/event-stream"


def _router() -> APIRouter:
    router = APIRouter()
    chat = scoped("infer", body=ChatBody, streams=_SSE, is_queued=True)
    for path in ("/v1/chat/completions", "/chat/completions"):
        router.post(path, openapi_extra=chat)(create_chat_completion)
    completions = scoped("infer", body=CompletionBody, streams=_SSE, is_queued=True)
    router.post("/v1/completions", openapi_extra=completions)(create_completion)
    router.post("/tokenize", openapi_extra=scoped("infer", body=TokenizeBody))(tokenize)
    router.post("/detokenize", openapi_extra=scoped("infer", body=DetokenizeBody))(detokenize)
    add_missing(router, MISSING)
    return router


DIALECT = Dialect(
    name="openai",
    prefixes=("/v1/", "/models", "/chat/completions", "/tokenize", "/detokenize", *(path for _, path, *_ in MISSING)),
    router=_router(),
    render_error=render_error,
    models=MODELS,
)
