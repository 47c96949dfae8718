"""Messages to a prompt: the one place where a chat template runs. Knows no tokens and no engine.

What the caller supplies is marked, so that the tokenizer can tell it from what the template wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError

from tuili.errors import ChatTemplateError, InvalidRequestError
from tuili.text.prompt_text import PromptText
from tuili.text.template_budget import BoundExceededError, Budget
from tuili.text.template_filters import BUDGET
from tuili.text.template_sandbox import ChatEnvironment
from tuili.types import Message

MAX_TEMPLATE_CHARS = 1 << 16
MAX_TEMPLATE_BYTES = 4 * MAX_TEMPLATE_CHARS  # of a file
MAX_NESTING = 64

_RESERVED = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
        "padding", "raise_exception", "return_dict", "return_tensors", "strftime_now", "tokenize",
        "tokenizer_kwargs", "tools", "truncation", "cycler", "dict", "joiner", "namespace", "range", "self",
    }
)  # fmt: skip
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A compiled template with the special tokens it may print (bos_token, eos_token, ...).

    Raises ChatTemplateError when the source is too long or no valid template.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._template = _compile(source, now)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_args: Mapping[str, Any] | None = None,
    ) -> PromptText:
        """The prompt, equal to Hugging Face's apply_chat_template.

        Everything in messages, tools and template_args is marked untrusted. continue_final_message leaves
        the last message open. Raises ChatTemplateError with the template's own message when it refuses, and
        when it fails or exceeds its bounds; InvalidRequestError for arguments that are not JSON values or
        whose names are reserved.
        """
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        reader = _Reader()
        chat = [_with_reasoning(message) for message in reader.read_messages(messages)]
        arguments = reader.read_arguments(template_args or {})
        tool_schemas = None if tools is None else reader.read(list(tools), "tools")
        final = _tag_final(chat) if continue_final_message else ""
        rendered = _run(
            self._template,
            {
                **self._special_tokens,
                **arguments,
                "messages": chat,
                "tools": tool_schemas,
                "documents": arguments.get("documents"),
                "add_generation_prompt": add_generation_prompt,
                BUDGET: Budget(reader.num_chars, reader.num_values),
            },
        )
        return _cut_at_tag(rendered, final) if continue_final_message else rendered


def _compile(source: str, now: Callable[[], datetime]) -> Template:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise ChatTemplateError(
            f"chat template: found {len(source)} characters, at most {MAX_TEMPLATE_CHARS} are allowed"
        )
    try:
        return ChatEnvironment(now).from_string(source)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(f"chat template, line {error.lineno}: {error.message}") from error
    except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        raise ChatTemplateError(f"chat template: not a valid template: {_reason(error)}") from error


def _run(template: Template, variables: Mapping[str, Any]) -> PromptText:
    try:
        rendered = PromptText.of(template.render(variables))
        budget: Budget = variables[BUDGET]
        budget.check_chars(len(rendered))
        return rendered
    except BoundExceededError as error:
        raise ChatTemplateError(f"chat template: stopped because {error}") from error
    except TemplateError as error:
        raise ChatTemplateError(f"chat template: {_reason(error)}") from error
    except RecursionError:
        raise ChatTemplateError("chat template: stopped because it recurses too deeply") from None
    except Exception as error:  # whatever the template's own expressions raise
        raise ChatTemplateError(f"chat template: failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong, without the name of a class."""
    return str(error) or "no reason is given"


class _Reader:
    """Copies the caller's values for a template, each text marked untrusted, and measures them."""

    __slots__ = ("num_chars", "num_values")

    def __init__(self) -> None:
        self.num_chars = 0
        self.num_values = 0

    def read_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
            raise InvalidRequestError(f"messages must be a list, got {type(messages).__name__}", param="messages")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise InvalidRequestError(
                    f"messages[{i}] must be an object, got {type(message).__name__}", param="messages"
                )
        return [self.read(message, f"messages[{i}]") for i, message in enumerate(messages)]

    def read_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        for name in arguments:
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in _RESERVED:
                raise InvalidRequestError(
                    f"template argument {name!r:.80} is reserved or no name; the template's own variables are allowed",
                    param="template_args",
                )
        return {name: self.read(value, f"template_args.{name}") for name, value in arguments.items()}

    def read(self, value: Any, field: str, depth: int = 0) -> Any:
        """Raises InvalidRequestError naming the field when the value is no JSON value or nests too deeply."""
        self.num_values += 1
        if depth > MAX_NESTING:
            raise InvalidRequestError(f"{field} nests more than {MAX_NESTING} deep", param=field)
        if isinstance(value, str):
            self.num_chars += len(value)
            return PromptText.outside(str.__getitem__(value, slice(None)))
        if isinstance(value, Mapping):
            return {self.read(key, field, depth + 1): self.read(item, field, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.read(item, field, depth + 1) for item in value]
        if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() <= 1024):
            return value
        raise InvalidRequestError(f"{field} must be made of JSON values, got {type(value).__name__}", param=field)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Templates call the reasoning of an earlier turn by different names: it answers to each."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tag_final(chat: list[dict[str, Any]]) -> str:
    """Appends the tag to the last message's text and gives that text."""
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        chat[-1]["content"] = PromptText.of(content) + _CONTINUE_TAG
        return content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = PromptText.of(text) + _CONTINUE_TAG
            return text
    raise InvalidRequestError(
        "continue_final_message needs a last message with text to continue", param="continue_final_message"
    )


def _cut_at_tag(rendered: PromptText, final: str) -> PromptText:
    if final.strip() not in rendered or _CONTINUE_TAG.strip() not in rendered:
        raise ChatTemplateError("chat template: it changes the final message, which then cannot be continued")
    start = rendered.rindex(_CONTINUE_TAG.strip())
    kept = rendered[:start]
    return kept if rendered.startswith(_CONTINUE_TAG, start) else kept.rstrip()
