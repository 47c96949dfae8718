"""OpenAI's HTTP API, with vLLM's additions: docs/http_api.md has every field."""

from __future__ import annotations

from fastapi import APIRouter

from tuili.server.dialect import Dialect, MissingRoute, add_missing, scoped
from tuili.server.dialects.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tuili.server.dialects.openai.chat import create_chat_completion
from tuili.server.dialects.openai.completions import create_completion
from tuili.server.dialects.openai.errors import render_error
from tuili.server.dialects.openai.models import list_models, retrieve_model
from tuili.server.dialects.openai.tokenize import detokenize, tokenize

_SSE = "text/event-stream"
_NO_RESPONSES = "ask /v1/chat/completions"
_NO_BATCHES = "`tuili generate` works through batch files"
_NO_EMBEDDINGS = "models that make embeddings are not run yet"
_MISSING: tuple[MissingRoute, ...] = (
    ("POST", "/v1/responses", "infer", _NO_RESPONSES),
    ("GET", "/v1/responses/{response_id}", "infer", _NO_RESPONSES),
    ("POST", "/v1/embeddings", "infer", _NO_EMBEDDINGS),
    ("POST", "/v1/rerank", "infer", _NO_EMBEDDINGS),
    ("POST", "/v1/score", "infer", _NO_EMBEDDINGS),
    ("GET", "/v1/batches", "infer", _NO_BATCHES),
    ("POST", "/v1/batches", "infer", _NO_BATCHES),
    ("GET", "/v1/batches/{batch_id}", "infer", _NO_BATCHES),
    ("GET", "/v1/files", "infer", _NO_BATCHES),
    ("POST", "/v1/files", "infer", _NO_BATCHES),
)


def _router() -> APIRouter:
    router = APIRouter()
    router.get("/v1/models", openapi_extra=scoped("infer"))(list_models)
    router.get("/v1/models/{model:path}", openapi_extra=scoped("infer"))(retrieve_model)
    chat = scoped("infer", body=ChatBody, streams=_SSE, is_queued=True)
    router.post("/v1/chat/completions", openapi_extra=chat)(create_chat_completion)
    completions = scoped("infer", body=CompletionBody, streams=_SSE, is_queued=True)
    router.post("/v1/completions", openapi_extra=completions)(create_completion)
    router.post("/tokenize", openapi_extra=scoped("infer", body=TokenizeBody))(tokenize)
    router.post("/detokenize", openapi_extra=scoped("infer", body=DetokenizeBody))(detokenize)
    add_missing(router, _MISSING)
    return router


DIALECT = Dialect(
    name="openai",
    prefixes=("/v1/", "/tokenize", "/detokenize"),
    router=_router(),
    render_error=render_error,
)
