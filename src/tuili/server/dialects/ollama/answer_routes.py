"""POST /api/generate and /api/chat: answers, and requests that only load or unload a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import ForbiddenError
from tuili.runtime.front.front import Front
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.body import read_body
from tuili.server.caller import Caller
from tuili.server.dialect import scoped
from tuili.server.dialects.ollama.bodies import ChatBody, GenerateBody
from tuili.server.dialects.ollama.keep_alive import parse_keep_alive
from tuili.server.dialects.ollama.names import model_name
from tuili.server.dialects.ollama.rendering import AnswerRenderer, Shape, line, model_message
from tuili.server.dialects.ollama.requests import Interpreted, chat_request, check, generate_request, is_empty
from tuili.server.ops import json_response
from tuili.server.serving import Serving
from tuili.server.streaming import collect, stream
from tuili.types import GenerateRequest

NDJSON = "application/x-ndjson"


def add_answer_routes(router: APIRouter) -> None:
    """The two routes."""
    router.post("/api/generate", openapi_extra=scoped("infer", body=GenerateBody, streams=NDJSON))(generate)
    router.post("/api/chat", openapi_extra=scoped("infer", body=ChatBody, streams=NDJSON))(chat)


async def generate(request: Request) -> Response:
    """Completes a prompt, by default as the answer to a user's message."""
    body = await read_body(request, GenerateBody)
    return await _answered(request, body, "generate", lambda front: generate_request(body, front))


async def chat(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_body(request, ChatBody)
    return await _answered(request, body, "chat", lambda front: chat_request(body, front))


async def _answered(
    request: Request, body: GenerateBody | ChatBody, shape: Shape, ask: Callable[[Front], Interpreted]
) -> Response:
    arrival_s = time.monotonic()
    serving: Serving = request.app.state.serving
    caller: Caller = request.state.caller
    check(body)
    keep_alive_s = parse_keep_alive(body.keep_alive)
    name = served_name(serving, body.model)
    is_streamed = body.stream is not False
    if is_empty(body):
        reason = await _only_load(serving, caller, name, keep_alive_s)
        message = model_message(body.model, shape, reason)
        return Response(line(message), media_type=NDJSON) if is_streamed else json_response(message)
    asked: list[Interpreted] = []

    async def make(model: ServedModel) -> list[GenerateRequest]:
        needs_tokens = body.truncate or (isinstance(body, GenerateBody) and (body.context or body.raw))
        asked.append(await asyncio.to_thread(ask, model.front) if needs_tokens else ask(model.front))
        return [asked[-1].request]

    answering = await serving.answer(caller, name, make, keep_alive_s=keep_alive_s)
    caller.ignored_params += asked[-1].without_effect
    renderer = AnswerRenderer(
        model=body.model,
        shape=shape,
        arrival_s=arrival_s,
        num_top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        context=list(answering.prompts[0].token_ids) if _wants_context(body) else None,
        num_truncated=asked[-1].num_truncated,
    )
    if is_streamed:
        return await stream(request, answering, renderer)
    return json_response(renderer.whole(await collect(request, answering)))


def served_name(serving: Serving, written: str) -> str:
    """The name to ask the pool for."""
    return model_name(written, serving.pool.given_names)


def _wants_context(body: GenerateBody | ChatBody) -> bool:
    return isinstance(body, GenerateBody) and not body.raw


async def _only_load(serving: Serving, caller: Caller, name: str, keep_alive_s: float | None) -> str:
    """What has been done. Raises what loading raises, ForbiddenError for unloading what others may be using."""
    if keep_alive_s != 0:
        async with serving.use(name, keep_alive_s=keep_alive_s):
            return "load"
    if "manage" not in caller.scopes:
        raise ForbiddenError("unloading a model needs a key with scope manage")
    await serving.pool.unload(name)
    return "unload"
