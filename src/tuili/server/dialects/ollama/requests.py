"""From Ollama's bodies to GenerateRequests. Pure, but for tokenizing where a prompt must fit a limit of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuili.errors import ChatTemplateError, InvalidRequestError
from tuili.ollama_terms import is_go_template
from tuili.runtime.front.front import Front, check_chars
from tuili.server.dialects.ollama.bodies import AnswerBody, ChatBody, GenerateBody
from tuili.server.dialects.ollama.continuing import continued
from tuili.server.dialects.ollama.fitting import Fitted, cut_to_fit
from tuili.server.dialects.ollama.options import Settings, read_settings
from tuili.types import GenerateRequest, Message

_LEVELS = ("low", "medium", "high", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreted:
    """What a body comes to for a model. `without_effect` are names of fields that change nothing."""

    request: GenerateRequest
    num_truncated: int
    without_effect: tuple[str, ...]


def is_empty(body: GenerateBody | ChatBody) -> bool:
    """Whether only the model is meant: to be loaded, or with keep_alive 0 unloaded."""
    return not (body.messages if isinstance(body, ChatBody) else body.prompt)


def check(body: GenerateBody | ChatBody) -> None:
    """Raises InvalidRequestError for what is not implemented, unless the field asks for nothing."""
    if body.format not in (None, ""):
        raise _missing("format", "structured output does not exist yet")
    if isinstance(body, ChatBody):
        if body.tools:
            raise _missing("tools", "tool calls do not exist yet")
        return
    if body.suffix:
        raise _missing("suffix", "the text after a prompt is not looked at")
    if body.images:
        raise _missing("images", "models read text only")
    if body.template and is_go_template(body.template):
        raise InvalidRequestError(
            "template is a Go template, which is not implemented: give it in Jinja, as models' files have theirs",
            param="template",
        )
    if body.raw and (body.template or body.system or body.context):
        raise InvalidRequestError("raw excludes template, system and context", param="raw")


def generate_request(body: GenerateBody, front: Front) -> Interpreted:
    """POST /api/generate. Raises InvalidRequestError, ContextLengthError, ChatTemplateError."""
    settings = read_settings(body, front.default_sampling, front.num_keep)
    request = _plain_request(body, settings)
    ignored = _ignored(body, settings, front)
    if body.raw:
        request = replace(request, split_reasoning=False, **_raw_prompt(front, body.prompt or ""))
    else:
        request = replace(request, **_as_conversation(body, front), template_args=_thinking(body, front))
        if body.context:
            request = continued(front, request, body.context)
            ignored += ("system",) if body.system else ()  # the context begins with the one it was given
    return _asked(body, front, request, settings, ignored)


def chat_request(body: ChatBody, front: Front) -> Interpreted:
    """POST /api/chat. Raises as generate_request does."""
    settings = read_settings(body, front.default_sampling, front.num_keep)
    template = "" if front.chat_template is None else front.chat_template.source
    request = replace(
        _plain_request(body, settings),
        messages=tuple(_message(message, i, template) for i, message in enumerate(body.messages or ())),
        template_args=_thinking(body, front),
    )
    return _asked(body, front, request, settings, _ignored(body, settings, front))


def _plain_request(body: AnswerBody, settings: Settings) -> GenerateRequest:
    """What does not depend on the prompt. Who serves the request gives it its id."""
    return GenerateRequest(
        request_id="", sampling=settings.sampling, context_len=settings.num_ctx, split_reasoning=True
    )


def _asked(
    body: AnswerBody, front: Front, request: GenerateRequest, settings: Settings, ignored: tuple[str, ...]
) -> Interpreted:
    fitted = cut_to_fit(front, request, settings.num_keep) if body.truncate else Fitted(request=request)
    return Interpreted(request=fitted.request, num_truncated=fitted.num_truncated, without_effect=ignored)


def _ignored(body: AnswerBody, settings: Settings, front: Front) -> tuple[str, ...]:
    """shift asks to drop what was said in the middle of an answer; a num_ctx beyond the context limits nothing."""
    is_beyond = settings.num_ctx is not None and settings.num_ctx > front.max_model_len
    return (
        *settings.without_effect,
        *(("options.num_ctx",) if is_beyond else ()),
        *(("shift",) if body.shift else ()),
    )


def _raw_prompt(front: Front, prompt: str) -> dict[str, Any]:
    """As the model's files frame a text; special tokens count, once where the prompt writes the first one, too."""
    check_chars(prompt)
    ids = front.tokenizer.encode(prompt, parse_special=True)
    if len(ids) > 1 and ids[0] == ids[1] and front.tokenizer.is_special(ids[0]):
        ids = ids[1:]
    return {"prompt_token_ids": tuple(ids), "shown_prompt": prompt}


def _as_conversation(body: GenerateBody, front: Front) -> dict[str, Any]:
    """A prompt is a user's message; a model without any template completes it."""
    if front.chat_template is None and not body.template:
        if body.system:
            raise ChatTemplateError(f"model {front.name!r} has no chat template, which system needs")
        return {"prompt": body.prompt}
    system = ({"role": "system", "content": body.system},) if body.system else ()
    return {"messages": (*system, {"role": "user", "content": body.prompt}), "chat_template": body.template or None}


def _thinking(body: AnswerBody, front: Front) -> dict[str, Any]:
    """What templates call it: enable_thinking, and for a level reasoning_effort."""
    if body.think is None:
        return {}
    if isinstance(body.think, str) and body.think not in _LEVELS:
        raise InvalidRequestError(
            f"think must be true, false or one of {', '.join(_LEVELS)}, got {body.think!r:.40}", param="think"
        )
    if isinstance(body.think, str):
        return {"enable_thinking": True, "reasoning_effort": body.think}
    return {"enable_thinking": body.think}


def _message(message: Mapping[str, Any], index: int, template: str) -> Message:
    """In the form of chat templates. Raises InvalidRequestError naming what is not implemented."""
    where = f"messages[{index}]"
    if message.get("images"):
        raise _missing(f"{where}.images", "models read text only")
    kept = {name: value for name, value in message.items() if value is not None and name != "images"}
    if message.get("tool_calls"):
        if "tool_calls" not in template:
            raise InvalidRequestError(f"{where}.tool_calls: the model's chat template knows none", param="messages")
    else:
        kept.pop("tool_calls", None)
    if "tool_name" in kept:
        kept["name"] = kept.pop("tool_name")
    return kept


def _missing(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is not implemented: {why}", param=name)
