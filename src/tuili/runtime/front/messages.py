"""Conversations as people write them, brought to the one form that chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.types import Message

MAX_MESSAGES = 8192
ROLES = ("assistant", "developer", "function", "system", "tool", "user")


def plain_messages(messages: Sequence[Message], template: str = "") -> list[dict[str, Any]]:
    """Messages whose content is one string: text parts are joined by newlines, and None is the empty string.

    A role is one of ROLES or one that `template`, the source of a chat template, names in quotes: most templates
    write any other one as it is, and the model has never seen it.
    Raises InvalidRequestError naming the message, the part, and what is missing or not supported.
    """
    if not messages:
        raise InvalidRequestError("messages is empty: give at least one message", param="messages")
    _check_count(messages)
    return [_plain(message, f"messages[{i}]", template) for i, message in enumerate(messages)]


def checked_messages(messages: object) -> list[Message]:
    """A conversation in which all is well but perhaps its roles: which there are, the model's template will say."""
    if not isinstance(messages, list):
        raise InvalidRequestError(f"messages must be a list, got {messages!r:.80}", param="messages")
    _check_count(messages)
    roles = [message["role"] for message in messages if isinstance(message, Mapping) and "role" in message]
    plain_messages(messages, " ".join(f"'{role}'" for role in roles))
    return messages


def _check_count(messages: Sequence[object]) -> None:
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(f"messages may be at most {MAX_MESSAGES}, got {len(messages)}", param="messages")


def _plain(message: Message, where: str, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(
            f"{where} must be a mapping with role and content, got {message!r:.80}", param="messages"
        )
    role = message.get("role")
    is_named = isinstance(role, str) and role and (f"'{role}'" in template or f'"{role}"' in template)
    if not is_named and role not in ROLES:
        allowed = f"one of {', '.join(ROLES)}, or one the chat template names"
        raise InvalidRequestError(f"{where}.role must be {allowed}, got {role!r:.80}", param="messages")
    if role == "developer" and not is_named:  # a newer word for it
        role = "system"
    return {**message, "role": role, "content": _text(message.get("content"), f"{where}.content")}


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        allowed = "a string or a list of text parts"
        raise InvalidRequestError(f"{where} must be {allowed}, got {content!r:.80}", param="messages")
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise InvalidRequestError(f"{where} must be a part of type 'text', got type {kind!r:.40}", param="messages")
    return str(part["text"])
