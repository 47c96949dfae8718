"""Anthropic's messages as chat templates have them: system text first, one text a turn, turns that alternate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.server.dialects.anthropic.bodies import PromptBody, Turn
from tuili.types import Message

# A client's note to its biller, different in every request: what follows it would never be found in the cache.
_BILLING = re.compile(r"^x-anthropic-billing-header:.*(?:\n|\Z)", re.MULTILINE)


def conversation(body: PromptBody) -> tuple[Message, ...]:
    """Messages with role, content and, where there is some, thinking. Turns of one role in a row become one.

    Raises InvalidRequestError naming a block that is no text.
    """
    messages: list[dict[str, Any]] = []
    if system := _system(body.system):
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(body.messages):
        message = _message(turn, f"messages[{index}]")
        if messages and messages[-1]["role"] == message["role"]:
            _join(messages[-1], message)
        else:
            messages.append(message)
    return tuple(messages)


def _system(system: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Without the line that changes with every request."""
    if system is None or isinstance(system, str):
        texts = [system or ""]
    else:
        texts = [_text(block, f"system[{i}]") for i, block in enumerate(system)]
    return "\n".join(filter(None, (_BILLING.sub("", text) for text in texts)))


def _join(message: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name in ("content", "thinking"):
        if more.get(name):
            message[name] = "\n".join(filter(None, (message.get(name), more[name])))


def _message(turn: Turn, where: str) -> dict[str, Any]:
    if isinstance(turn.content, str):
        return {"role": turn.role, "content": turn.content}
    texts, thoughts = [], []
    for i, block in enumerate(turn.content):
        kind = block.get("type") if turn.role == "assistant" else None
        if kind == "thinking":
            thoughts.append(_field(block, "thinking", f"{where}.content[{i}]"))
        elif kind != "redacted_thinking":  # which tells nothing to anybody but the server it came from
            texts.append(_text(block, f"{where}.content[{i}]"))
    thinking = {"thinking": "\n".join(thoughts)} if any(thoughts) else {}
    return {"role": turn.role, "content": "\n".join(texts), **thinking}


def _text(block: Mapping[str, Any], where: str) -> str:
    kind = block.get("type")
    if kind != "text":
        found = f"{where} is a block of type {kind!r:.40}"
        raise InvalidRequestError(f"{found}, which is not implemented: models read text only", param=where)
    return _field(block, "text", where)


def _field(block: Mapping[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"{where}.{name} must be a string, got {value!r:.80}", param=f"{where}.{name}")
    return value
