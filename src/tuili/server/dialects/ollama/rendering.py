"""Events as Ollama writes them: one JSON object a line while an answer comes, or one object for all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from tuili.errors import TuiliError
from tuili.server.dialect import Progress
from tuili.types import Done, Event, Finished, Logprob, TextDelta, TokenLogprobs

Shape = Literal["generate", "chat"]


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 in UTC, as Go writes times; None is now."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def line(value: object) -> bytes:
    """One object of a stream."""
    return msgspec.json.encode(value) + b"\n"


def model_message(model: str, shape: Shape, done_reason: str) -> dict[str, Any]:
    """The answer to a request that only loads or unloads."""
    return {**_head(model), **_text(shape, ""), "done": True, "done_reason": done_reason}


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": timestamp()}


def _text(shape: Shape, text: str, thinking: str = "") -> dict[str, Any]:
    thought = {"thinking": thinking} if thinking else {}
    if shape == "chat":
        return {"message": {"role": "assistant", "content": text, **thought}}
    return {"response": text, **thought}


def _token(token_id: int, value: Logprob) -> dict[str, Any]:
    token = value.decoded_token or ""
    return {"token": token, "logprob": value.logprob, "bytes": list(token.encode())}


def _logprobs(deltas: Iterable[TextDelta], num_top: int) -> list[dict[str, Any]]:
    """Each chosen token, with the best at its place when asked for."""
    return [
        {**_token(token_id, entry[token_id]), **_top(entry, num_top)}
        for delta in deltas
        for token_id, entry in zip(delta.token_ids, delta.logprobs or (), strict=False)
    ]


def _top(entry: TokenLogprobs, num_top: int) -> dict[str, Any]:
    if not num_top:
        return {}
    best = sorted(entry.items(), key=lambda item: -item[1].logprob)[:num_top]
    return {"top_logprobs": [_token(token_id, value) for token_id, value in best]}


@dataclass(kw_only=True, slots=True)
class AnswerRenderer:
    """Writes one answer, streamed or whole. `arrival_s` is when the request came, on the monotonic clock.

    num_top_logprobs None leaves logprobs out. context holds the prompt's tokens where the answer is to bring those of
    the conversation so far. num_truncated of the prompt's tokens were cut.
    """

    model: str
    shape: Shape
    arrival_s: float
    num_top_logprobs: int | None = None
    context: list[int] | None = None
    num_truncated: int = 0
    clock: Callable[[], float] = time.monotonic
    media_type: str = "application/x-ndjson"
    _done_reason: str = "stop"

    def start(self) -> bytes:
        """Nothing is said before the first token."""
        return b""

    def push(self, events: Sequence[tuple[int, Event]]) -> bytes:
        """At most a line of thought, one of text, and the last one."""
        deltas, done = self._read(event for _, event in events)
        thoughts = [delta for delta in deltas if delta.reasoning and not delta.text]
        others = [delta for delta in deltas if delta.text or not delta.reasoning]
        lines = [line({**self._part(part), "done": False}) for part in (thoughts, others) if self._says(part)]
        if done is not None:
            lines.append(line({**_head(self.model), **_text(self.shape, ""), **self._ending(done)}))
        return b"".join(lines)

    def fail(self, error: TuiliError) -> bytes:
        """The last line of a stream that broke."""
        return line({"error": str(error)})

    def keep_alive(self, progress: Progress) -> bytes:
        """A line without text, which clients add to the answer as they do any other."""
        told = {"prompt_tokens_computed": progress.num_computed, "prompt_tokens": progress.num_prompt}
        return line({**_head(self.model), **_text(self.shape, ""), **told, "done": False})

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """All of an answer, which ended well, as one object."""
        deltas, done = self._read(event for _, event in events)
        assert done is not None, "an answer ends with Done"
        return {**self._part(deltas), **self._ending(done)}

    def _read(self, events: Iterable[Event]) -> tuple[list[TextDelta], Done | None]:
        deltas, done = [], None
        for event in events:
            if isinstance(event, TextDelta):
                deltas.append(event)
                if self.context is not None:
                    self.context += event.token_ids
            elif isinstance(event, Finished):
                self._done_reason = event.finish_reason
            elif isinstance(event, Done):
                done = event
        return deltas, done

    def _says(self, deltas: Sequence[TextDelta]) -> bool:
        """Whether there is a line to write: text may lag behind tokens."""
        wants_tokens = self.num_top_logprobs is not None
        return any(delta.text or delta.reasoning or (wants_tokens and delta.token_ids) for delta in deltas)

    def _part(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        text, thinking = "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas)
        part = {**_head(self.model), **_text(self.shape, text, thinking)}
        if self.num_top_logprobs is not None:
            part["logprobs"] = _logprobs(deltas, self.num_top_logprobs)
        return part

    def _ending(self, done: Done) -> dict[str, Any]:
        usage, timings = done.usage, done.timings
        return {
            "done": True,
            "done_reason": self._done_reason,
            **({} if self.context is None else {"context": self.context}),
            "total_duration": _ns(self.clock() - self.arrival_s),
            # until the engine began: loading, and waiting
            "load_duration": _ns(timings.arrival_s + timings.queue_s - self.arrival_s),
            "prompt_eval_count": usage.num_prompt_tokens,
            "cached_tokens": usage.num_cached_tokens,
            "prompt_eval_duration": _ns(timings.time_to_first_token_s - timings.queue_s),
            "eval_count": usage.num_output_tokens,
            "eval_duration": _ns(timings.decode_s),
            **({"truncated_tokens": self.num_truncated} if self.num_truncated else {}),
        }


def _ns(seconds: float) -> int:
    return max(round(seconds * 1_000_000_000), 0)
