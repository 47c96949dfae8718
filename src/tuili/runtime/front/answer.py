"""Turns the token deltas of one request into events: detokenizes, finds stop strings, counts.

A pure state machine, pushed by whoever reads the deltas. Its events are the same however the
engine cut the tokens into deltas. Knows no threads, no engine, no wire format.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from tuili.runtime.metrics import RequestMeter
from tuili.text.detokenizer import Detokenizer
from tuili.text.reasoning import Marks, Phase, ReasoningSplitter
from tuili.text.stops import StopFinder
from tuili.text.tokenizer import Tokenizer
from tuili.types import (
    CacheMiss,
    Done,
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprob,
    TextDelta,
    Timings,
    TokenDelta,
    TokenLogprobs,
    TokenRequest,
    Usage,
)


@dataclass(slots=True)
class _Stream:
    """One of the n answers under way."""

    detokenizer: Detokenizer | None
    stops: StopFinder | None  # None: no stop strings
    splitter: ReasoningSplitter | None  # None: thinking is text like any other
    num_tokens: int = 0
    is_finished: bool = False
    last_token_s: float | None = None


@dataclass(slots=True)
class Answer:
    """Push deltas in, read events out; `is_done` after the terminal event.

    `stopped` lists answers that a stop string ended while the engine still runs them: whoever
    owns the engine's handle aborts those. `meter` is told when the request is done. `thinking` says by which
    marks thinking is told apart, and where each answer begins.
    """

    tokenizer: Tokenizer
    request: TokenRequest
    meter: RequestMeter | None = None
    thinking: tuple[Marks, Phase] | None = None
    is_done: bool = False
    stopped: list[int] = field(default_factory=list)
    _streams: list[_Stream] = field(default_factory=list)
    _arrival_s: float = 0.0
    _first_token_s: float | None = None
    _scheduled_s: float | None = None
    _num_cached_tokens: int = 0
    _cache_miss: CacheMiss | None = None
    _num_reasoning_tokens: int = 0
    _gaps_s: list[float] = field(default_factory=list)
    _reasons: list[FinishReason] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._arrival_s = time.monotonic()
        self._streams = [self._stream() for _ in range(self.request.sampling.n)]

    def _stream(self) -> _Stream:
        params, prompt_ids = self.request.sampling, self.request.prompt_token_ids
        stops = StopFinder(params.stops, params.include_stop_str_in_output) if params.stops else None
        if not params.detokenize:
            return _Stream(None, stops, None)
        splitter, kept = None, frozenset[int]()
        if self.thinking is not None:
            splitter = ReasoningSplitter(*self.thinking)
            kept = frozenset(i for mark in self.thinking[0] if (i := self.tokenizer.token_id(mark)) is not None)
        detokenizer = Detokenizer(self.tokenizer, prompt_ids, params.skip_special_tokens, kept)
        return _Stream(detokenizer, stops, splitter)

    def arrived(self, arrival_s: float) -> None:
        """Counts time from then on: the request had to wait before the engine was asked."""
        self._arrival_s = arrival_s

    @property
    def scheduled_s(self) -> float | None:
        """When the engine began with it, once something has come."""
        return self._scheduled_s

    @property
    def finish_reasons(self) -> tuple[FinishReason, ...]:
        """Of the answers that have ended, in the order they did."""
        return tuple(self._reasons)

    @property
    def num_running(self) -> int:
        """Answers the engine may still be at."""
        return sum(not s.is_finished for s in self._streams)

    def push(self, delta: TokenDelta) -> list[Event]:
        """The events that follow from one delta. Deltas of a finished answer are ignored."""
        stream = self._streams[delta.index]
        if stream.is_finished or self.is_done:
            return []
        if delta.error is not None:
            self.is_done = True
            return [Failed(delta.error)]
        if self._first_token_s is None:
            self._num_cached_tokens, self._scheduled_s = delta.num_cached_tokens, delta.scheduled_s
            self._cache_miss = delta.cache_miss
        if delta.token_ids:
            self._note_time(stream, len(delta.token_ids))
        events: list[Event] = []
        self._push_tokens(stream, delta, events)
        if delta.finish_reason is not None and not stream.is_finished:
            stop_reason = delta.stop_token_id if delta.stop_reason is None else delta.stop_reason
            self._finish(stream, delta.index, delta.finish_reason, stop_reason, events)
        return events

    def _note_time(self, stream: _Stream, num_tokens: int) -> None:
        """Tokens of one delta count as evenly spread over the time since the last."""
        now = time.monotonic()
        if self._first_token_s is None:
            self._first_token_s = now
            if self.meter is not None:
                self.meter.add_prompt(len(self.request.prompt_token_ids), self._num_cached_tokens)
        if stream.last_token_s is not None and self.meter is not None:
            self._gaps_s += [(now - stream.last_token_s) / num_tokens] * num_tokens
        stream.last_token_s = now

    def _push_tokens(self, stream: _Stream, delta: TokenDelta, events: list[Event]) -> None:
        prompt_logprobs = delta.prompt_logprobs and tuple(
            entry and self._decoded(entry) for entry in delta.prompt_logprobs
        )
        num_shown = len(delta.token_ids) - (delta.stop_token_id is not None)
        for i, token_id in enumerate(delta.token_ids):
            piece = TextDelta(
                index=delta.index,
                text=self._text(stream, token_id) if i < num_shown else "",
                token_ids=(token_id,),
                logprobs=delta.logprobs and (self._decoded(delta.logprobs[i]),),
                prompt_logprobs=prompt_logprobs,
            )
            if stream.splitter is not None:
                self._split(stream.splitter, piece)
            events.append(piece)
            stream.num_tokens += 1
            prompt_logprobs = None
            if stream.stops is not None and stream.stops.found is not None:
                if delta.finish_reason is None:
                    self.stopped.append(delta.index)
                self._finish(stream, delta.index, "stop", stream.stops.found, events)
                return

    def _text(self, stream: _Stream, token_id: int) -> str:
        """What the next token makes certain. Stop strings do not count before min_tokens."""
        if stream.detokenizer is None:
            return ""
        text = stream.detokenizer.push(token_id)
        if stream.stops is None or stream.num_tokens < self.request.sampling.min_tokens:
            return text
        return stream.stops.push(text)

    def _split(self, splitter: ReasoningSplitter, piece: TextDelta) -> None:
        was_thinking = splitter.is_thinking
        piece.reasoning, piece.text = splitter.push(piece.text)
        piece.is_reasoning = was_thinking or splitter.is_thinking
        self._num_reasoning_tokens += was_thinking and splitter.is_thinking

    def _finish(
        self, stream: _Stream, index: int, reason: FinishReason, stop_reason: str | int | None, events: list[Event]
    ) -> None:
        stream.is_finished = True
        rest = ""
        if stream.detokenizer is not None and (stream.stops is None or stream.stops.found is None):
            rest = stream.detokenizer.flush()
            if stream.stops is not None:
                rest = stream.stops.push(rest)
                if stream.stops.found is None:
                    rest += stream.stops.flush()
                else:
                    reason, stop_reason = "stop", stream.stops.found
        reasoning, text = ("", rest) if stream.splitter is None else stream.splitter.finish(rest)
        if reasoning or text:
            no_logprobs = self._no_logprobs()
            events.append(TextDelta(index=index, text=text, token_ids=(), logprobs=no_logprobs, reasoning=reasoning))
        self._reasons.append(reason)
        events.append(Finished(index=index, finish_reason=reason, stop_reason=stop_reason))
        if all(s.is_finished for s in self._streams):
            self.is_done = True
            events.append(done := self._done())
            if self.meter is not None:
                longest = max(stream.num_tokens for stream in self._streams)
                self.meter.add(done, self._reasons, self._gaps_s, self.request.sampling, longest)

    def _no_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        return None if self.request.sampling.logprobs is None else ()

    def _done(self) -> Done:
        now = time.monotonic()
        first = now if self._first_token_s is None else self._first_token_s
        usage = Usage(
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self._num_cached_tokens,
            num_output_tokens=sum(s.num_tokens for s in self._streams),
            cache_miss=self._cache_miss,
            num_reasoning_tokens=self._num_reasoning_tokens,
        )
        timings = Timings(
            time_to_first_token_s=first - self._arrival_s,
            decode_s=now - first,
            arrival_s=self._arrival_s,
            queue_s=max((self._scheduled_s or self._arrival_s) - self._arrival_s, 0.0),
        )
        return Done(usage=usage, timings=timings)

    def _decoded(self, entry: TokenLogprobs) -> TokenLogprobs:
        if not self.request.sampling.detokenize:
            return entry
        return {token_id: self._with_text(token_id, value) for token_id, value in entry.items()}

    def _with_text(self, token_id: int, value: Logprob) -> Logprob:
        text = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return Logprob(value.logprob, value.rank, text)


class Aborter(Protocol):
    """An engine, by whatever handle."""

    def abort(self, request_id: str, index: int | None = None) -> None: ...


def abort_stopped(engine: Aborter, answer: Answer) -> None:
    """Tells the engine about answers that ended in text while it still runs them."""
    for index in answer.stopped:
        engine.abort(answer.request.request_id, index)
    answer.stopped.clear()
