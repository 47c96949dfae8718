"""A conversation as it stands: messages, system text and sampling options, and the file they are kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuili.cli.sampling_options import SAMPLING_NAMES, sampling_params
from tuili.errors import InvalidRequestError
from tuili.types import Message

MAX_FILE_BYTES = 64 << 20
_ROLES = ("user", "assistant")


@dataclass(slots=True)
class Conversation:
    """What a chat remembers. `sampling` holds only what the person set."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    template_args: dict[str, Any] = field(default_factory=dict)

    def prompt_messages(self) -> tuple[Message, ...]:
        """The messages a template renders."""
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return (*system, *self.messages)

    def save(self, path: Path, model: str) -> None:
        """Writes the conversation as JSON. Raises InvalidRequestError when the file cannot be written."""
        content = {"model": model, "system": self.system, "sampling": self.sampling, "messages": self.messages}
        try:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError(f"cannot write {str(path)!r}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Replaces messages, system and sampling by a saved conversation; all or nothing.

        Raises InvalidRequestError naming the field that is wrong.
        """
        content = _read(path)
        system, messages, sampling = content.get("system"), content.get("messages"), content.get("sampling", {})
        if system is not None and not isinstance(system, str):
            raise InvalidRequestError(f"{path.name}: system must be a string or null, got {system!r:.80}")
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise InvalidRequestError(f"{path.name}: messages must be a list of user and assistant messages with text")
        if not isinstance(sampling, dict) or not sampling.keys() <= set(SAMPLING_NAMES):
            raise InvalidRequestError(f"{path.name}: sampling must hold only {', '.join(SAMPLING_NAMES)}")
        sampling_params({}, sampling)
        self.system, self.sampling = system, sampling
        self.messages = [{"role": message["role"], "content": message["content"]} for message in messages]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        content = json.loads(data) if len(data) <= MAX_FILE_BYTES else None
    except OSError as error:
        raise InvalidRequestError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path.name} is no saved conversation: {error}") from error
    if not isinstance(content, dict):
        allowed = f"a JSON object of at most {MAX_FILE_BYTES} bytes"
        raise InvalidRequestError(f"{path.name} is no saved conversation, which is {allowed}")
    return content


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() >= {"role", "content"}
        and message["role"] in _ROLES
        and isinstance(message["content"], str)
    )
