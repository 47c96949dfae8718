"""POST /v1/completions: prompts go in as they are, text or token ids, and their continuations come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tuili.runtime.front.front import Front
from tuili.runtime.openai.fields import COMPLETIONS
from tuili.runtime.openai.logprobs import CompletionLogprobs, prompt_logprobs
from tuili.runtime.openai.requests import completion_defaults, prompts
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.answering import Answering
from tuili.server.dialects.openai.bodies import CompletionBody, read_fields
from tuili.server.dialects.openai.facts import ending, model_name, stream_flags, token_bytes
from tuili.server.dialects.openai.parse import engine_requests
from tuili.server.dialects.openai.respond import respond
from tuili.server.serving import Serving
from tuili.types import Finished, GenerateRequest, PromptTokens, TextDelta, TokenLogprobs


async def create_completion(request: Request) -> Response:
    """Continuations of one prompt or several, whole or streamed."""
    body = await read_fields(request, CompletionBody)
    serving: Serving = request.app.state.serving
    flags = stream_flags(body, forces_usage=serving.settings.forces_usage)
    answering = await serving.answer(
        request.state.caller, model_name(request, body.get("model")), lambda model: completion_requests(body, model)
    )
    form = CompletionForm(body, answering, tells_token_ids=serving.settings.tells_token_ids)
    return await respond(request, body, answering, form, kind="cmpl", flags=flags)


def completion_requests(body: dict[str, Any], model: ServedModel) -> list[GenerateRequest]:
    """What the model is asked for each prompt. Raises InvalidRequestError naming the field.

    Control tokens written in a prompt count, and what the model's files put before a text is put there, unless
    parse_special or add_special_tokens is false.
    """
    fields = {
        "parse_special": body.get("parse_special", True),
        "add_special_tokens": body.get("add_special_tokens", True),
    }
    asked = ({**fields, **prompt} for prompt in prompts(body.get("prompt")))
    return engine_requests(_with_echo(body), COMPLETIONS, completion_defaults(model.front.default_sampling), asked)


def _with_echo(body: dict[str, Any]) -> dict[str, Any]:
    """With echo, log probabilities are those of the prompt, too; and no tokens at all may be asked for."""
    if not body.get("echo"):
        return body
    changes: dict[str, Any] = {}
    if body.get("logprobs") is not None and body.get("prompt_logprobs") is None:
        changes["prompt_logprobs"] = body["logprobs"]
    if body.get("max_tokens") == 0:
        changes["max_tokens"] = 1  # computed, and not told
    return {**body, **changes}


@dataclass(slots=True)
class CompletionChoice:
    """One continuation, the echoed prompt before it."""

    form: CompletionForm
    request: int
    logprobs: CompletionLogprobs | None
    text: str
    num_tokens: int = 0
    lists: dict[str, list[Any]] = field(default_factory=CompletionLogprobs.empty)
    token_ids: list[int] = field(default_factory=list)
    has_begun: bool = False

    def add(self, delta: TextDelta) -> None:
        self._begin()
        if self.form.tells_prompt_only:
            return
        self.num_tokens += len(delta.token_ids)
        self.text += delta.text
        if self.form.has_token_ids:
            self.token_ids += delta.token_ids
        if self.logprobs is not None and delta.logprobs is not None:
            for token_id, found in zip(delta.token_ids, delta.logprobs, strict=True):
                self.logprobs.add(self.lists, token_id, found, is_shown=self.form.is_shown(token_id))

    def _begin(self) -> None:
        """The prompt's own log probabilities come before those of the first token."""
        if self.has_begun:
            return
        self.has_begun = True
        if self.logprobs is not None and self.form.is_echo:
            self.form.add_prompt(self.request, self.logprobs, self.lists)

    def take(self) -> dict[str, Any] | None:
        if not (self.text or self.lists["tokens"] or self.token_ids):
            return None
        told = {"text": self.text, **self._beside()}
        self.text, self.token_ids, self.lists = "", [], CompletionLogprobs.empty()
        return told

    def ending(self, event: Finished) -> dict[str, Any]:
        return {"text": "", "logprobs": None, **self.form.ending(event)}

    def whole(self, event: Finished) -> dict[str, Any]:
        self._begin()
        return {"text": self.text, **self._beside(), **self.form.ending(event), **self.form.prompt_told(self.request)}

    def _beside(self) -> dict[str, Any]:
        logprobs = None if self.logprobs is None else self.lists
        return {"logprobs": logprobs} | ({"token_ids": self.token_ids} if self.form.has_token_ids else {})


class CompletionForm:
    """Completions as OpenAI writes them, with vLLM's additions where they are asked for."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, body: dict[str, Any], answering: Answering, *, tells_token_ids: bool) -> None:
        self.prompts: Sequence[PromptTokens] = answering.prompts
        self.has_token_ids = bool(body.get("return_token_ids"))
        self.is_echo = bool(body.get("echo"))
        self.tells_prompt_only = self.is_echo and body.get("max_tokens") == 0
        self._front: Front = answering.model.front
        self._requests = answering.requests
        self._num_logprobs: int | None = body.get("logprobs")
        self._as_ids = bool(body.get("return_tokens_as_token_ids", tells_token_ids))
        self._tells_prompt_logprobs = body.get("prompt_logprobs") is not None
        self._prompt_logprobs: dict[int, Sequence[TokenLogprobs | None]] = {}
        sampling = answering.requests[0].sampling
        self._hidden = self._front.tokenizer.special_ids if sampling.skip_special_tokens else frozenset[int]()

    def choice(self, request: int) -> CompletionChoice:
        echoed = self._prompt_text(request) if self.is_echo else ""
        logprobs = None
        if self._num_logprobs is not None:
            names = token_bytes(self._front)
            logprobs = CompletionLogprobs(self._num_logprobs, names, as_ids=self._as_ids, echoed=echoed)
        return CompletionChoice(self, request, logprobs, echoed)

    def note_prompt_logprobs(self, request: int, found: Sequence[TokenLogprobs | None]) -> None:
        self._prompt_logprobs[request] = found

    def add_prompt(self, request: int, logprobs: CompletionLogprobs, lists: dict[str, list[Any]]) -> None:
        """Appends the entries of a prompt's tokens, which have come by the time that any answer begins."""
        for token_id, found in zip(self.prompts[request].token_ids, self._prompt_logprobs[request], strict=True):
            logprobs.add(lists, token_id, found, is_shown=True)
        logprobs.end_prompt()

    def opening(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return []

    def extras(self) -> dict[str, Any]:
        return {}

    def is_shown(self, token_id: int) -> bool:
        """Whether a token of an answer is in its text."""
        return token_id not in self._hidden

    def ending(self, event: Finished) -> dict[str, Any]:
        """How a continuation ended."""
        if self.tells_prompt_only:
            return {"finish_reason": "length", "stop_reason": None}
        return ending(event, self._requests[0])

    def prompt_told(self, request: int) -> dict[str, Any]:
        """What vLLM tells of the prompt with each choice."""
        told: dict[str, Any] = {}
        if self.has_token_ids:
            told["prompt_token_ids"] = self.prompts[request].token_ids
        if self._tells_prompt_logprobs:
            told["prompt_logprobs"] = prompt_logprobs(self._prompt_logprobs[request], token_bytes(self._front))
        return told

    def _prompt_text(self, request: int) -> str:
        prompt = self.prompts[request]
        if prompt.text is None or prompt.num_truncated:
            return self._front.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
        return str(prompt.text)
