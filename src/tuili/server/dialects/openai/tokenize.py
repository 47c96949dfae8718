"""POST /tokenize and /detokenize, as vLLM and llama-server have them; which of the two is told by the body's names."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import InvalidRequestError
from tuili.runtime.front.front import Front, check_chars
from tuili.runtime.openai.requests import conversation
from tuili.server.dialects.openai.bodies import DetokenizeBody, TokenizeBody, read_fields
from tuili.server.dialects.openai.facts import model_name
from tuili.server.dialects.openai.parse import prompt_ending
from tuili.server.ops import json_response
from tuili.server.serving import Serving
from tuili.types import GenerateRequest, SamplingParams


async def tokenize(request: Request) -> Response:
    """Ids of a text, or of a conversation as the model's template writes it."""
    body = await read_fields(request, TokenizeBody)
    kinds = [name for name in ("prompt", "content", "messages") if name in body]
    if len(kinds) != 1:
        raise InvalidRequestError(
            f"give exactly one of prompt, content and messages, got {' and '.join(kinds) or 'none'}", param="prompt"
        )
    serving: Serving = request.app.state.serving
    async with serving.use(model_name(request, body.get("model"))) as model:
        ids = await asyncio.to_thread(_ids, body, model.front)
        if kinds == ["content"]:
            pieces = [{"id": i, "piece": _piece(model.front, i)} for i in ids]
            return json_response({"tokens": pieces if body.get("with_pieces") else ids})
        told: dict[str, Any] = {"count": len(ids), "max_model_len": model.front.max_model_len, "tokens": ids}
        tokens = model.front.tokenizer.convert_ids_to_tokens(ids) if body.get("return_token_strs") else None
        return json_response({**told, "token_strs": tokens})


async def detokenize(request: Request) -> Response:
    """The text of ids, special tokens included; under vLLM's name and under llama-server's."""
    body = await read_fields(request, DetokenizeBody)
    serving: Serving = request.app.state.serving
    async with serving.use(model_name(request, body.get("model"))) as model:
        size = model.front.vocab_size
        if any(not 0 <= i < size for i in body["tokens"]):
            raise InvalidRequestError(f"tokens must be integers in [0, {size})", param="tokens")
        text = model.front.tokenizer.decode(body["tokens"], skip_special_tokens=False)
        return json_response({"prompt": text, "content": text})


def _ids(body: dict[str, Any], front: Front) -> list[int]:
    check_chars(body.get("content") or body.get("prompt") or "")
    if "content" in body:
        adds, parses = body.get("add_special", False), body.get("parse_special", True)
        return front.tokenizer.encode(body["content"], add_special_tokens=adds, parse_special=parses)
    if "prompt" in body:
        adds, parses = body.get("add_special_tokens", True), body.get("parse_special", True)
        return front.tokenizer.encode(body["prompt"], add_special_tokens=adds, parse_special=parses)
    asked = GenerateRequest(
        request_id="",
        sampling=SamplingParams(),
        chat_template=body.get("chat_template"),
        **prompt_ending(body),
        **conversation(body),
    )
    return list(front.prompt_tokens(asked).token_ids)


def _piece(front: Front, token_id: int) -> str | list[int]:
    """Its text, or its bytes where they are no text by themselves."""
    text = front.tokenizer.token_text(token_id)
    return list(front.tokenizer.token_bytes(token_id)) if text is None else text
