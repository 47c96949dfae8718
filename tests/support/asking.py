"""The same question in each wire format, and what its answers say, streamed or whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Format:
    """A way to hold a conversation: where, in what body, and where its text stands in an answer and in an event."""

    path: str
    body: Callable[[Messages, Mapping[str, Any]], dict[str, Any]]
    text: Callable[[Any], str]
    piece: Callable[[Any], str]


def _openai(messages: Messages, sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": messages, **sampling}


def _ollama(messages: Messages, sampling: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(sampling)
    limit = {"num_predict": options.pop("max_tokens")} if "max_tokens" in options else {}
    return {"messages": messages, "options": {**options, **limit}}


def _anthropic(messages: Messages, sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": messages, "max_tokens": 64, **sampling}


OPENAI = Format(
    "/v1/chat/completions",
    _openai,
    lambda answer: answer["choices"][0]["message"]["content"],
    lambda event: "".join(choice["delta"].get("content") or "" for choice in event["choices"]),
)
OLLAMA = Format(
    "/api/chat", _ollama, lambda answer: answer["message"]["content"], lambda event: event["message"]["content"]
)
ANTHROPIC = Format(
    "/v1/messages",
    _anthropic,
    lambda answer: "".join(block["text"] for block in answer["content"]),
    lambda event: event.get("delta", {}).get("text", ""),
)
FORMATS = {"openai": OPENAI, "ollama": OLLAMA, "anthropic": ANTHROPIC}


def events_of(text: str) -> list[Any]:
    """The values of a stream of server-sent events or of lines of JSON."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("data: ", "{"))]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said(url: str, form: Format, body: Mapping[str, Any], *, streams: bool) -> str:
    """What a server answers to a body that is complete but for `stream`."""
    response = httpx.post(f"{url}{form.path}", json={**body, "stream": streams}, timeout=240)
    assert response.status_code == 200, response.text
    return "".join(map(form.piece, events_of(response.text))) if streams else form.text(response.json())
