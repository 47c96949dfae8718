"""From Anthropic's bodies to GenerateRequests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.runtime.front.front import Front
from tuili.server.dialects.anthropic.bodies import MessagesBody, PromptBody
from tuili.server.dialects.anthropic.conversation import conversation
from tuili.server.sampling_fields import named_sampling
from tuili.types import GenerateRequest, SamplingParams

_FIELDS: Mapping[str, str] = {  # body -> SamplingParams
    **{name: name for name in ("max_tokens", "temperature", "top_p", "top_k")},
    "stop_sequences": "stop",
}


def check(body: PromptBody) -> None:
    """Raises InvalidRequestError for what is not implemented, unless the field asks for nothing."""
    if body.tools:
        raise _missing("tools", "tool calls do not exist yet")
    if body.tool_choice is not None and body.tool_choice.get("type") not in ("auto", "none"):
        raise _missing("tool_choice", "tool calls do not exist yet")
    if (body.output_config or {}).get("format") is not None:
        raise _missing("output_config.format", "structured output does not exist yet")
    if isinstance(body, MessagesBody):
        if body.mcp_servers:
            raise _missing("mcp_servers", "tool calls do not exist yet")
        if body.container is not None:
            raise _missing("container", "no code is run here")


def without_effect(body: PromptBody, betas: str) -> tuple[str, ...]:
    """Fields, and names in the header of betas, that ask for something which changes nothing."""
    has_budget = body.thinking is not None and body.thinking.budget_tokens is not None
    named = tuple(f"anthropic-beta={beta.strip()}" for beta in betas.split(",") if beta.strip())
    return (*named, *(("thinking.budget_tokens",) if has_budget else ()))


def message_request(body: MessagesBody, front: Front) -> GenerateRequest:
    """POST /v1/messages; who serves the request gives it its id. Raises InvalidRequestError naming the field."""
    given = {field: value for name, field in _FIELDS.items() if (value := getattr(body, name)) is not None}
    names = {field: name for name, field in _FIELDS.items()}
    return _request(body, named_sampling({**front.default_sampling, **given}, names))


def prompt_request(body: PromptBody) -> GenerateRequest:
    """A request of which only the prompt is of interest. Raises as message_request does."""
    return _request(body, SamplingParams())


def _request(body: PromptBody, sampling: SamplingParams) -> GenerateRequest:
    """A conversation that ends with the assistant's turn is gone on with."""
    messages = conversation(body)
    is_continued = bool(messages) and messages[-1]["role"] == "assistant"
    return GenerateRequest(
        request_id="",
        sampling=sampling,
        messages=messages,
        template_args=_thinking(body),
        continue_final_message=is_continued,
        split_reasoning=True,
    )


def _thinking(body: PromptBody) -> dict[str, Any]:
    """What templates call it. Adaptive thinking, or none mentioned, is the template's own choice."""
    args: dict[str, Any] = {}
    if body.thinking is not None and body.thinking.type != "adaptive":
        args["enable_thinking"] = body.thinking.type == "enabled"
    if (effort := (body.output_config or {}).get("effort")) is not None:
        args["reasoning_effort"] = effort
    return args


def _missing(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is not implemented: {why}", param=name)
