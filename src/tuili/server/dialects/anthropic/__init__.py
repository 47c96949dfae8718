"""Anthropic's API: /v1/messages, answered whole or as events, and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import TuiliError
from tuili.server.body import read_body
from tuili.server.caller import Caller
from tuili.server.dialect import Dialect, scoped
from tuili.server.dialects.anthropic.bodies import MessagesBody, PromptBody
from tuili.server.dialects.anthropic.models import MODELS
from tuili.server.dialects.anthropic.rendering import MessageRenderer, error_value
from tuili.server.dialects.anthropic.requests import check, message_request, prompt_request, without_effect
from tuili.server.ops import json_response
from tuili.server.serving import Serving
from tuili.server.streaming import collect, stream


async def messages(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_body(request, MessagesBody)
    check(body)
    serving: Serving = request.app.state.serving
    caller: Caller = request.state.caller
    caller.ignored_params += without_effect(body, request.headers.get("anthropic-beta", ""))
    answering = await serving.answer(caller, body.model, lambda model: [message_request(body, model.front)])
    renderer = MessageRenderer(
        request_id=caller.request_id,
        model=body.model,
        num_prompt_tokens=len(answering.prompts[0].token_ids),
        max_tokens=body.max_tokens,
        omits_thinking=body.thinking is not None and body.thinking.display == "omitted",
    )
    if body.stream:
        return await stream(request, answering, renderer)
    return json_response(renderer.whole(await collect(request, answering)))


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation's prompt has, without answering it."""
    body = await read_body(request, PromptBody)
    check(body)
    serving: Serving = request.app.state.serving
    async with serving.use(body.model) as model:
        prompt = await asyncio.to_thread(model.front.prompt_tokens, prompt_request(body))
    return json_response({"input_tokens": len(prompt.token_ids)})


def render_error(error: TuiliError, request_id: str) -> bytes:
    """With the type that Anthropic's clients know a status by."""
    return msgspec.json.encode(error_value(error, request_id))


def _router() -> APIRouter:
    router = APIRouter()
    answers = scoped("infer", body=MessagesBody, streams="text/event-stream", is_queued=True)
    router.post("/v1/messages", openapi_extra=answers)(messages)
    router.post("/v1/messages/count_tokens", openapi_extra=scoped("infer", body=PromptBody))(count_tokens)
    return router


DIALECT = Dialect(
    name="anthropic", prefixes=("/v1/messages",), router=_router(), render_error=render_error, models=MODELS
)
