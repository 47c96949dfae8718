"""OpenAI's batch files: request bodies of chat/completions and completions, and the lines that answer them.

The same job gives the same bytes: `created` is 0, and ids are made of custom ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuili.errors import InvalidRequestError, TuiliError
from tuili.runtime.api.outputs import CompletionOutput, RequestOutput
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.task import Result, Served, row_sampling
from tuili.runtime.openai.fields import CHAT, TAKEN, URLS
from tuili.runtime.openai.logprobs import ChatLogprobs, CompletionLogprobs, decoded_bytes
from tuili.runtime.openai.requests import (
    completion_defaults,
    conversation,
    prompts,
    request_fields,
    sampling_values,
    without_unimplemented,
)
from tuili.types import GenerateRequest

_LINE = ("custom_id", "method", "url", "body")
_ALSO_WITHOUT_EFFECT = ("stream_options",)
_ONLY_OFF = ("stream", "echo")  # fields with a meaning over HTTP alone


def is_batch_row(row: Row) -> bool:
    """Whether the file is a batch file, told by its first row."""
    return {"custom_id", "url", "body"} <= row.values.keys()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAiTask:
    """Rows {"custom_id", "method", "url", "body"}. `sampling` stands where a body says nothing."""

    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def row_id(self, row: Row) -> str:
        if unknown := [name for name in row.values if name not in _LINE]:
            raise InvalidRequestError(f"{unknown[0]!r} is not allowed; allowed are {', '.join(_LINE)}")
        custom_id = row.values.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise InvalidRequestError(f"custom_id must be text, got {custom_id!r:.80}", param="custom_id")
        return custom_id

    def request(self, row: Row, job_seed: int, model: Served) -> GenerateRequest:
        custom_id, url = self.row_id(row), self._url(row)
        body = _checked_body(row, url)
        layers = model.default_sampling if url == CHAT else completion_defaults(model.default_sampling)
        params = row_sampling(sampling_values(body, url, {**layers, **self.sampling}), job_seed, row)
        asked = conversation(body) if url == CHAT else _one_prompt(body.get("prompt"))
        return GenerateRequest(request_id=custom_id, sampling=params, **asked, **request_fields(body))

    def result(self, row: Row, request: GenerateRequest, output: RequestOutput) -> Result:
        is_chat, count = self._url(row) == CHAT, request.sampling.logprobs or 0
        num_prompt, num_output = len(output.prompt_token_ids), sum(len(o.token_ids) for o in output.outputs)
        body = {
            "id": _made_id("chatcmpl" if is_chat else "cmpl", request.request_id),
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 0,
            "model": self.model,
            "choices": (_chat_choices if is_chat else _completion_choices)(output, count),
            "usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": num_output,
                "total_tokens": num_prompt + num_output,
            },
        }
        return {"status_code": 200, "body": body}

    def failure(self, error: TuiliError) -> Result:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        told = {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": error.code}
        return {"status_code": error.status, "body": {"error": told}}

    def line(self, row: Row, job_seed: int, result: Result) -> Mapping[str, Any]:
        custom_id = self.row_id(row)
        return {
            "id": _made_id("batch_req", custom_id),
            "custom_id": custom_id,
            "response": {
                "status_code": result["status_code"],
                "request_id": _made_id("req", custom_id),
                "body": result["body"],
            },
            "error": None,
        }

    def _url(self, row: Row) -> str:
        method, url = row.values.get("method", "POST"), row.values.get("url")
        if method != "POST":
            raise InvalidRequestError(f"method must be 'POST', got {method!r:.80}", param="method")
        if not isinstance(url, str) or url not in URLS:
            raise InvalidRequestError(f"url must be one of {', '.join(URLS)}, got {url!r:.80}", param="url")
        return url


def _checked_body(row: Row, url: str) -> dict[str, Any]:
    """The body without nulls and without what has no effect."""
    body = row.values.get("body")
    if not isinstance(body, Mapping):
        raise InvalidRequestError(f"body must be an object, got {body!r:.80}", param="body")
    given = {name: value for name, value in body.items() if value is not None and name not in _ALSO_WITHOUT_EFFECT}
    for name in _ONLY_OFF:
        if given.pop(name, False) is not False:
            raise InvalidRequestError(f"{name} is not implemented in files; it may be False or absent", param=name)
    given = without_unimplemented(given)
    if unknown := [name for name in given if name not in TAKEN[url]]:
        known = ", ".join(sorted(TAKEN[url]))
        raise InvalidRequestError(f"{unknown[0]} is not implemented; known are {known}", param=unknown[0])
    return given


def _one_prompt(prompt: object) -> dict[str, Any]:
    """A line is one row, and so one prompt."""
    found = prompts(prompt)
    if len(found) > 1:
        raise InvalidRequestError(
            f"prompt holds {len(found)} prompts, and a line is answered with one: give each a line of its own",
            param="prompt",
        )
    return found[0]


def _chat_choices(output: RequestOutput, count: int) -> list[dict[str, Any]]:
    return [
        {
            "index": o.index,
            "message": {"role": "assistant", "content": o.text, "refusal": None},
            "logprobs": _chat_logprobs(o, count),
            "finish_reason": o.finish_reason,
        }
        for o in output.outputs
    ]


def _completion_choices(output: RequestOutput, count: int) -> list[dict[str, Any]]:
    return [
        {"index": o.index, "text": o.text, "logprobs": _completion_logprobs(o, count), "finish_reason": o.finish_reason}
        for o in output.outputs
    ]


def _chat_logprobs(output: CompletionOutput, count: int) -> dict[str, Any] | None:
    if output.logprobs is None:
        return None
    form = ChatLogprobs(count, decoded_bytes)
    content = [form.entry(i, found) for i, found in zip(output.token_ids, output.logprobs, strict=True)]
    return {"content": content, "refusal": None}


def _completion_logprobs(output: CompletionOutput, count: int) -> dict[str, Any] | None:
    if output.logprobs is None:
        return None
    form, lists = CompletionLogprobs(count, decoded_bytes), CompletionLogprobs.empty()
    for token_id, found in zip(output.token_ids, output.logprobs, strict=True):
        form.add(lists, token_id, found, is_shown=True)
    return lists


def _made_id(prefix: str, custom_id: str) -> str:
    return f"{prefix}-{hashlib.blake2b(custom_id.encode(), digest_size=12).hexdigest()}"
