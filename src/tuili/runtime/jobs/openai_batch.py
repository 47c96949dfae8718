"""OpenAI's batch files: request bodies of chat/completions and completions, and the lines that answer them.

The same job gives the same bytes: `created` is 0, and ids are made of custom ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tuili.errors import InvalidRequestError, TuiliError
from tuili.runtime.jobs.openai_logprobs import chat_logprobs, completion_logprobs
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.task import Result, Served, checked_messages, row_sampling
from tuili.runtime.outputs import RequestOutput
from tuili.sampling_params import UNSUPPORTED
from tuili.types import GenerateRequest, SamplingParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_LINE = ("custom_id", "method", "url", "body")
_WITHOUT_EFFECT = frozenset(
    {
        *("model", "user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prediction", "stream_options"),
    }
)
_OFF: Mapping[str, tuple[Any, ...]] = {  # what is not implemented may be asked for in its neutral form
    "stream": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
_NOT_IN_BODIES = {"logprobs", "prompt_logprobs", "detokenize", "logits_processors", "output_kind", "skip_clone"}
_SAMPLING = frozenset(f.name for f in fields(SamplingParams)) - _NOT_IN_BODIES
_REQUEST = {"add_generation_prompt": bool, "continue_final_message": bool, "cache_salt": str, "priority": int}
_FIELDS: Mapping[str, frozenset[str]] = {
    CHAT: frozenset({"messages", "max_completion_tokens", "logprobs", "top_logprobs", "chat_template_kwargs"}),
    COMPLETIONS: frozenset({"prompt", "logprobs"}),
}
_DEFAULT_MAX_TOKENS = {CHAT: None, COMPLETIONS: 16}
_MAX_TOP_LOGPROBS = 20


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
        values = {name: body[name] for name in _SAMPLING & body.keys()}
        if isinstance(values.get("logit_bias"), Mapping):
            values["logit_bias"] = {_token_id(key): value for key, value in values["logit_bias"].items()}
        if "max_completion_tokens" in body:
            values["max_tokens"] = body["max_completion_tokens"]
        values["logprobs"] = _num_logprobs(body, url)
        defaults = {"max_tokens": _DEFAULT_MAX_TOKENS[url], **model.default_sampling, **self.sampling}
        params = row_sampling({**defaults, **values}, job_seed, row)
        asked = _chat_fields(body) if url == CHAT else _prompt_fields(body.get("prompt"))
        others = {name: body[name] for name in _REQUEST if name in body}
        return GenerateRequest(request_id=custom_id, sampling=params, **asked, **others)

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
        if not isinstance(url, str) or url not in _FIELDS:
            raise InvalidRequestError(f"url must be one of {', '.join(_FIELDS)}, got {url!r:.80}", param="url")
        return url


def _checked_body(row: Row, url: str) -> dict[str, Any]:
    """The body without nulls and without what has no effect."""
    body = row.values.get("body")
    if not isinstance(body, Mapping):
        raise InvalidRequestError(f"body must be an object, got {body!r:.80}", param="body")
    given = {name: value for name, value in body.items() if value is not None and name not in _WITHOUT_EFFECT}
    for name, value in given.items():
        if name in _OFF:
            if value not in _OFF[name]:
                allowed = " or ".join(map(repr, _OFF[name]))
                raise InvalidRequestError(
                    f"body.{name} = {value!r:.80} is not implemented; it may be {allowed} or absent", param=name
                )
        elif name not in _SAMPLING | _FIELDS[url] | _REQUEST.keys():
            known = ", ".join(sorted((_SAMPLING - UNSUPPORTED.keys() - _OFF.keys()) | _FIELDS[url] | _REQUEST.keys()))
            raise InvalidRequestError(f"body.{name} is not implemented; known are {known}", param=name)
        kind = _REQUEST.get(name)
        if kind is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise InvalidRequestError(f"body.{name} must be of type {kind.__name__}, got {value!r:.80}", param=name)
    return {name: value for name, value in given.items() if name not in _OFF}


def _token_id(key: object) -> int:
    try:
        return int(str(key))
    except ValueError:
        raise InvalidRequestError(
            f"body.logit_bias must map token ids to numbers, found the key {key!r:.80}", param="logit_bias"
        ) from None


def _num_logprobs(body: Mapping[str, Any], url: str) -> int | None:
    asked, top = body.get("logprobs"), body.get("top_logprobs")
    if url == COMPLETIONS:
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int)):
            raise InvalidRequestError(f"body.logprobs must be a whole number, got {asked!r:.80}", param="logprobs")
        return asked
    if not isinstance(asked, bool | None):
        raise InvalidRequestError(f"body.logprobs must be true or false, got {asked!r:.80}", param="logprobs")
    if top is None:
        return 0 if asked else None
    if not asked or isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= _MAX_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"body.top_logprobs must be in [0, {_MAX_TOP_LOGPROBS}] beside logprobs = true, got {top!r:.80}",
            param="top_logprobs",
        )
    return top


def _chat_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    messages = checked_messages(body.get("messages"), "body.messages")
    template_args = body.get("chat_template_kwargs", {})
    if not isinstance(template_args, Mapping):
        raise InvalidRequestError(
            f"body.chat_template_kwargs must be an object, got {template_args!r:.80}", param="chat_template_kwargs"
        )
    return {"messages": tuple(messages), "template_args": template_args}


def _prompt_fields(prompt: object) -> dict[str, Any]:
    """Text or token ids, or a list of just one of them: a line is one row, and so one prompt."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return {"prompt": prompt}
    if isinstance(prompt, list) and prompt and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        return {"prompt_token_ids": tuple(prompt)}
    if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(one, str | list) for one in prompt):
        raise InvalidRequestError(
            f"body.prompt holds {len(prompt)} prompts, and a line is answered with one: give each a line of its own",
            param="prompt",
        )
    raise InvalidRequestError(
        f"body.prompt must be one text or one list of token ids, got {prompt!r:.80}", param="prompt"
    )


def _chat_choices(output: RequestOutput, count: int) -> list[dict[str, Any]]:
    return [
        {
            "index": o.index,
            "message": {"role": "assistant", "content": o.text, "refusal": None},
            "logprobs": chat_logprobs(o, count),
            "finish_reason": o.finish_reason,
        }
        for o in output.outputs
    ]


def _completion_choices(output: RequestOutput, count: int) -> list[dict[str, Any]]:
    return [
        {"index": o.index, "text": o.text, "logprobs": completion_logprobs(o, count), "finish_reason": o.finish_reason}
        for o in output.outputs
    ]


def _made_id(prefix: str, custom_id: str) -> str:
    return f"{prefix}-{hashlib.blake2b(custom_id.encode(), digest_size=12).hexdigest()}"
