"""Events as Anthropic writes them: typed server-sent events around blocks of content, or one message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from tuili.errors import TuiliError
from tuili.server.dialect import Progress
from tuili.types import Done, Event, Finished, TextDelta, Usage

Kind = Literal["thinking", "text"]
Piece = tuple[Kind, str]
_TYPES = {  # of errors, by status
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_value(error: TuiliError, request_id: str) -> dict[str, Any]:
    """An error's body, and the data of its event."""
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    told = {"type": _TYPES.get(error.status, usual), "message": str(error)}
    return {"type": "error", "error": told, "request_id": request_id}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def _signature(thinking: str) -> str:
    """Clients hand thoughts back only with a signature. Nobody checks this one."""
    return hashlib.sha256(thinking.encode()).hexdigest()


@dataclass(kw_only=True, slots=True)
class MessageRenderer:
    """Writes one message, streamed or whole. omits_thinking leaves thoughts out, but for a block without text."""

    request_id: str
    model: str
    num_prompt_tokens: int
    max_tokens: int
    omits_thinking: bool = False
    media_type: str = "text/event-stream"
    _said: dict[Kind, list[str]] = field(default_factory=lambda: {"thinking": [], "text": []})
    _open: Kind | None = None
    _num_blocks: int = 0
    _finished: Finished | None = None

    def start(self) -> bytes:
        """The message, empty; how much of the prompt was cached is told at the end."""
        usage = {"input_tokens": self.num_prompt_tokens, "output_tokens": 0}
        return _event("message_start", message=self._message([], self._ending(None), usage)) + _event("ping")

    def push(self, events: Sequence[tuple[int, Event]]) -> bytes:
        """Deltas, those of one kind joined, blocks opened and closed around them, and with Done the end."""
        pieces, done = self._read(event for _, event in events)
        data = b"".join(self._block(kind) + self._delta(kind, text) for kind, text in pieces)
        if done is None:
            return data
        if self._open is None:
            data += self._block("text")
        usage = self._usage(done.usage)
        return (
            data
            + self._close()
            + _event("message_delta", delta=self._ending(done.usage), usage=usage)
            + _event("message_stop")
        )

    def fail(self, error: TuiliError) -> bytes:
        """The event that ends a stream which broke."""
        value = error_value(error, self.request_id)
        return _event("error", error=value["error"], request_id=self.request_id)

    def keep_alive(self, progress: Progress) -> bytes:
        """A ping, which clients pass over."""
        return _event("ping", prompt_tokens_computed=progress.num_computed, prompt_tokens=progress.num_prompt)

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """A message that ended well."""
        _, done = self._read(event for _, event in events)
        assert done is not None, "an answer ends with Done"
        thinking, text = "".join(self._said["thinking"]), "".join(self._said["text"])
        content: list[dict[str, Any]] = []
        if thinking:
            shown = "" if self.omits_thinking else thinking
            content.append({"type": "thinking", "thinking": shown, "signature": _signature(thinking)})
        if text or not content:
            content.append({"type": "text", "text": text})
        return self._message(content, self._ending(done.usage), self._usage(done.usage))

    def _message(self, content: list[dict[str, Any]], ending: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            **ending,
            "usage": usage,
        }

    def _read(self, events: Iterable[Event]) -> tuple[list[Piece], Done | None]:
        """Texts with their kind, neighbours of one kind joined."""
        pieces: list[Piece] = []
        done = None
        for event in events:
            if isinstance(event, TextDelta):
                found: tuple[Piece, ...] = (("thinking", event.reasoning), ("text", event.text))
                for kind, text in found:
                    if text and pieces and pieces[-1][0] == kind:
                        pieces[-1] = (kind, pieces[-1][1] + text)
                    elif text:
                        pieces.append((kind, text))
            elif isinstance(event, Finished):
                self._finished = event
            elif isinstance(event, Done):
                done = event
        for kind, text in pieces:
            self._said[kind].append(text)
        return pieces, done

    def _block(self, kind: Kind) -> bytes:
        """Makes `kind` the open block."""
        if self._open == kind:
            return b""
        data = self._close()
        self._open, empty = kind, {"signature": ""} if kind == "thinking" else {}
        block = {"type": kind, kind: "", **empty}
        return data + _event("content_block_start", index=self._num_blocks, content_block=block)

    def _delta(self, kind: Kind, text: str) -> bytes:
        if kind == "thinking" and self.omits_thinking:
            return b""
        delta = {"type": f"{kind}_delta", kind: text}
        return _event("content_block_delta", index=self._num_blocks, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        data, index = b"", self._num_blocks
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": _signature("".join(self._said["thinking"]))}
            data = _event("content_block_delta", index=index, delta=delta)
        self._open = None
        self._num_blocks += 1
        return data + _event("content_block_stop", index=index)

    def _ending(self, usage: Usage | None) -> dict[str, Any]:
        """Why it ended; usage None: it has not."""
        if usage is None or self._finished is None:
            return {"stop_reason": None, "stop_sequence": None}
        stop = self._finished.stop_reason
        if self._finished.finish_reason == "length":
            is_full = usage.num_output_tokens < self.max_tokens
            return {"stop_reason": "model_context_window_exceeded" if is_full else "max_tokens", "stop_sequence": None}
        if isinstance(stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        """The prompt's tokens are those computed and, apart, those cached."""
        return {
            "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.num_cached_tokens,
            "output_tokens": usage.num_output_tokens,
            "output_tokens_details": {"thinking_tokens": usage.num_reasoning_tokens},
            **({} if usage.cache_miss is None else {"cache_miss": usage.cache_miss._asdict()}),
        }
