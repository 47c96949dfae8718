"""What OpenAI's answers are made of, whole or in chunks: heads, usage, timings, events. Events in, JSON out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from tuili.errors import TuiliError
from tuili.server.dialect import Progress
from tuili.server.dialects.openai.errors import error_object
from tuili.types import Done, Event, Finished, PromptTokens, TextDelta, Timings, TokenLogprobs, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerForm:
    """What a body asks of the form of its answer."""

    id: str
    model: str
    fingerprint: str
    num_choices: int  # of each prompt
    created: int = field(default_factory=lambda: int(time.time()))
    has_usage: bool = False  # streams: in a chunk of its own at the end
    has_running_usage: bool = False  # streams: in every chunk
    has_progress: bool = False


class Choice(Protocol):
    """One answer, gathering what has not been told yet."""

    num_tokens: int

    def add(self, delta: TextDelta) -> None: ...

    def take(self) -> dict[str, Any] | None:
        """What a chunk tells of it, None when there is nothing new."""

    def ending(self, event: Finished) -> dict[str, Any]:
        """What the last chunk tells of it."""

    def whole(self, event: Finished) -> dict[str, Any]:
        """What a blocking answer tells of it, once nothing has been taken and all has come."""


class Form(Protocol):
    """How one of the two endpoints writes."""

    object_name: str
    chunk_name: str
    prompts: Sequence[PromptTokens]

    def choice(self, request: int) -> Choice:
        """A new answer to one of the prompts."""

    def note_prompt_logprobs(self, request: int, found: Sequence[TokenLogprobs | None]) -> None:
        """They come with the first token of the first answer."""

    def opening(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Chunks that come before any text: the choice, and fields beside choices."""

    def extras(self) -> dict[str, Any]:
        """Fields of a whole answer beside its choices."""


class _Gathering:
    """Answers as far as they have come. Choices of several prompts are numbered through."""

    def __init__(self, asked: AnswerForm, form: Form) -> None:
        self._num_choices = asked.num_choices
        self._form = form
        self.choices: dict[int, Choice] = {}
        self.done: list[Done] = []

    def number(self, request: int, event: TextDelta | Finished) -> int:
        """The choice's number, of which there is one from now on."""
        number = request * self._num_choices + event.index
        if number not in self.choices:
            self.choices[number] = self._form.choice(request)
        return number

    def add(self, request: int, event: TextDelta) -> int:
        if event.prompt_logprobs is not None:
            self._form.note_prompt_logprobs(request, event.prompt_logprobs)
        number = self.number(request, event)
        self.choices[number].add(event)
        return number

    def usage(self) -> dict[str, Any]:
        """Counts of all prompts and answers so far."""
        prompts, usages = self._form.prompts, [done.usage for done in self.done]
        num_prompt = sum(len(prompt.token_ids) for prompt in prompts)
        num_output = sum(choice.num_tokens for choice in self.choices.values())
        details: dict[str, Any] = {"cached_tokens": sum(usage.num_cached_tokens for usage in usages)}
        if len(usages) == 1 and (miss := usages[0].cache_miss) is not None:
            details |= {"cache_miss_reason": miss.reason, "first_different_token": miss.position}
        if num_truncated := sum(prompt.num_truncated for prompt in prompts):
            details["truncated_tokens"] = num_truncated
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": sum(usage.num_reasoning_tokens for usage in usages)},
        }

    def ending(self) -> dict[str, Any]:
        """Usage, and timings where they are those of one prompt."""
        told: dict[str, Any] = {"usage": self.usage()}
        if len(self.done) == 1:
            told["timings"] = timings(self.done[0].usage, self.done[0].timings)
        return told


def timings(usage: Usage, spent: Timings) -> dict[str, Any]:
    """Under llama.cpp's names; times in milliseconds. prompt_ms is without the wait for the engine."""
    num_computed = usage.num_prompt_tokens - usage.num_cached_tokens
    prompt_s = max(spent.time_to_first_token_s - spent.queue_s, 0.0)
    return {
        "queue_ms": spent.queue_s * 1e3,
        "cache_n": usage.num_cached_tokens,
        "prompt_n": num_computed,
        "prompt_ms": prompt_s * 1e3,
        "prompt_per_second": num_computed / prompt_s if prompt_s else None,
        "predicted_n": usage.num_output_tokens,
        "predicted_ms": spent.decode_s * 1e3,
        "predicted_per_second": usage.num_output_tokens / spent.decode_s if spent.decode_s else None,
    }


class Renderer:
    """A streamed answer."""

    media_type = "text/event-stream"

    def __init__(self, asked: AnswerForm, form: Form) -> None:
        self._asked = asked
        self._form = form
        self._gathering = _Gathering(asked, form)
        self._num_open = len(form.prompts)
        head = {"id": asked.id, "object": form.chunk_name, "created": asked.created, "model": asked.model}
        encoded = msgspec.json.encode({**head, "system_fingerprint": asked.fingerprint})
        self._head = b"data: " + encoded[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if asked.has_usage else b"}\n\n"

    def start(self) -> bytes:
        return b"".join(self._chunk(choice, extras) for choice, extras in self._form.opening())

    def push(self, events: Sequence[tuple[int, Event]]) -> bytes:
        return b"".join(self._pushed(events))

    def fail(self, error: TuiliError) -> bytes:
        return b"data: " + msgspec.json.encode({"error": error_object(error)}) + b"\n\n"

    def keep_alive(self, progress: Progress) -> bytes:
        if not self._asked.has_progress:
            return b": prompt %d/%d\n\n" % (progress.num_computed, progress.num_prompt)
        told = {
            "total": progress.num_prompt,
            "cache": progress.num_cached,
            "processed": progress.num_computed,  # those found in the cache among them
            "time_ms": int(progress.elapsed_s * 1000),
        }
        return self._head + b"[]," + msgspec.json.encode({"prompt_progress": told})[1:] + b"\n\n"

    def _pushed(self, events: Sequence[tuple[int, Event]]) -> Iterator[bytes]:
        changed: dict[int, None] = {}  # in the order they came
        for request, event in events:
            if type(event) is TextDelta:
                changed[self._gathering.add(request, event)] = None
            elif type(event) is Finished:
                number = self._gathering.number(request, event)
                changed.pop(number, None)
                yield self._news(number)
                yield self._chunk({"index": number, **self._gathering.choices[number].ending(event)})
            elif type(event) is Done:
                self._gathering.done.append(event)
                self._num_open -= 1
        for number in changed:
            yield self._news(number)
        if not self._num_open:
            yield from self._ended()

    def _news(self, number: int) -> bytes:
        told = self._gathering.choices[number].take()
        return b"" if told is None else self._chunk({"index": number, **told, "finish_reason": None})

    def _chunk(self, choice: dict[str, Any], extras: Mapping[str, Any] | None = None) -> bytes:
        tail = self._tail
        if self._asked.has_running_usage:
            tail = b"," + msgspec.json.encode({"usage": self._gathering.usage()})[1:] + b"\n\n"
        if extras:
            tail = b"," + msgspec.json.encode(extras)[1:-1] + tail
        return self._head + b"[" + msgspec.json.encode(choice) + b"]" + tail

    def _ended(self) -> Iterator[bytes]:
        if self._asked.has_usage:
            yield self._head + b"[]," + msgspec.json.encode(self._gathering.ending())[1:] + b"\n\n"
        yield b"data: [DONE]\n\n"


def whole(asked: AnswerForm, form: Form, events: Sequence[tuple[int, Event]]) -> bytes:
    """The blocking answer: a fold over the same events."""
    gathering = _Gathering(asked, form)
    endings: dict[int, Finished] = {}
    for request, event in events:
        if isinstance(event, TextDelta):
            gathering.add(request, event)
        elif isinstance(event, Finished):
            endings[gathering.number(request, event)] = event
        elif isinstance(event, Done):
            gathering.done.append(event)
    choices = [{"index": i, **gathering.choices[i].whole(endings[i])} for i in sorted(endings)]
    body = {
        "id": asked.id,
        "object": form.object_name,
        "created": asked.created,
        "model": asked.model,
        "system_fingerprint": asked.fingerprint,
        "choices": choices,
        **form.extras(),
        **gathering.ending(),
    }
    return msgspec.json.encode(body)
