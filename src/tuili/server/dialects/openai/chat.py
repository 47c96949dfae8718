"""POST /v1/chat/completions: a conversation goes in, its next message comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import InvalidRequestError
from tuili.runtime.front.front import Front
from tuili.runtime.openai.fields import CHAT
from tuili.runtime.openai.logprobs import ChatLogprobs, prompt_logprobs
from tuili.runtime.openai.requests import conversation
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.answering import Answering
from tuili.server.dialects.openai.bodies import ChatBody, read_fields
from tuili.server.dialects.openai.facts import ending, model_name, stream_flags, token_bytes
from tuili.server.dialects.openai.parse import engine_requests, prompt_ending
from tuili.server.dialects.openai.respond import respond
from tuili.server.serving import Serving
from tuili.types import Finished, GenerateRequest, PromptTokens, TextDelta, TokenLogprobs


async def create_chat_completion(request: Request) -> Response:
    """The next message of a conversation, whole or streamed."""
    body = await read_fields(request, ChatBody)
    serving: Serving = request.app.state.serving
    flags = stream_flags(body, forces_usage=serving.settings.forces_usage)
    if body.get("stream") and body.get("prompt_logprobs") is not None:
        raise InvalidRequestError("prompt_logprobs are told in whole answers only", param="prompt_logprobs")
    if body.get("add_special_tokens"):
        raise InvalidRequestError(
            "add_special_tokens must be false: the template writes them", param="add_special_tokens"
        )
    answering = await serving.answer(
        request.state.caller, model_name(request, body.get("model")), lambda model: chat_requests(body, model)
    )
    settings = serving.settings
    form = ChatForm(body, answering, settings.response_role, tells_token_ids=settings.tells_token_ids)
    return await respond(request, body, answering, form, kind="chatcmpl", flags=flags)


def chat_requests(body: dict[str, Any], model: ServedModel) -> list[GenerateRequest]:
    """The one that the model is asked. Raises InvalidRequestError naming the field."""
    asked = {
        **conversation(body),
        "chat_template": body.get("chat_template"),
        **prompt_ending(body),
        "split_reasoning": True,
    }
    return engine_requests(body, CHAT, model.front.default_sampling, [asked])


@dataclass(slots=True)
class ChatChoice:
    """One answer of a conversation. Thinking that is not to be seen leaves nothing behind, its tokens neither."""

    form: ChatForm
    logprobs: ChatLogprobs | None
    text: str
    reasoning: str = ""
    num_tokens: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    def add(self, delta: TextDelta) -> None:
        self.num_tokens += len(delta.token_ids)
        self.text += delta.text
        if self.form.hides_reasoning and delta.is_reasoning:
            return
        if not self.form.hides_reasoning:
            self.reasoning += delta.reasoning
        if self.form.has_token_ids:
            self.token_ids += delta.token_ids
        if self.logprobs is not None and delta.logprobs is not None:
            for token_id, found in zip(delta.token_ids, delta.logprobs, strict=True):
                self.entries.append(self.logprobs.entry(token_id, found))

    def take(self) -> dict[str, Any] | None:
        if not (self.text or self.reasoning or self.entries or self.token_ids):
            return None
        delta: dict[str, Any] = {}
        if self.reasoning:
            delta |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        if self.text or not delta:
            delta["content"] = self.text
        told = {"delta": delta, **self._beside()}
        self.text, self.reasoning, self.token_ids, self.entries = "", "", [], []
        return told

    def ending(self, event: Finished) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, **self.form.ending(event)}

    def whole(self, event: Finished) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.form.role, "content": self.text, "refusal": None}
        if self.reasoning:
            message |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        return {"message": message, **self._beside(), **self.form.ending(event)}

    def _beside(self) -> dict[str, Any]:
        logprobs = None if self.logprobs is None else {"content": self.entries, "refusal": None}
        return {"logprobs": logprobs} | ({"token_ids": self.token_ids} if self.form.has_token_ids else {})


class ChatForm:
    """Chat completions as OpenAI writes them, with vLLM's additions where they are asked for."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, body: dict[str, Any], answering: Answering, role: str, *, tells_token_ids: bool) -> None:
        self.prompts: Sequence[PromptTokens] = answering.prompts
        self.hides_reasoning = body.get("include_reasoning") is False
        self.has_token_ids = bool(body.get("return_token_ids"))
        self._front: Front = answering.model.front
        self._request = answering.requests[0]
        last = body["messages"][-1]
        continues = bool(body.get("continue_final_message"))
        self.role = role if body.get("add_generation_prompt", not continues) else str(last["role"])
        is_echoed = body.get("echo") and last["role"] == self.role and isinstance(last.get("content"), str)
        self._echoed: str = last["content"] if is_echoed else ""
        self._as_ids = bool(body.get("return_tokens_as_token_ids", tells_token_ids))
        self._prompt_logprobs: list[dict[str, Any] | None] | None = None

    def choice(self, request: int) -> ChatChoice:
        count = self._request.sampling.logprobs
        logprobs = None
        if count is not None:
            logprobs = ChatLogprobs(count, token_bytes(self._front), as_ids=self._as_ids)
        return ChatChoice(self, logprobs, self._echoed)

    def note_prompt_logprobs(self, request: int, found: Sequence[TokenLogprobs | None]) -> None:
        self._prompt_logprobs = prompt_logprobs(found, token_bytes(self._front))

    def opening(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        delta = {"role": self.role, "content": ""}
        choice = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [({"index": i, **choice}, {} if i else self._prompt_ids()) for i in range(self._request.sampling.n)]

    def extras(self) -> dict[str, Any]:
        told = self._prompt_ids()
        return told if self._prompt_logprobs is None else {**told, "prompt_logprobs": self._prompt_logprobs}

    def ending(self, event: Finished) -> dict[str, Any]:
        """How an answer ended."""
        return ending(event, self._request)

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self.prompts[0].token_ids} if self.has_token_ids else {}
