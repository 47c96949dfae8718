"""Turns the token deltas of one request into events: detokenizes, finds stop strings, counts.

A pure state machine, pushed by whoever reads the deltas. Its events are the same however the
engine cut the tokens into deltas. Knows no threads, no engine, no wire format.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tuili.text.detokenizer import Detokenizer
from tuili.text.stops import StopFinder
from tuili.text.tokenizer import Tokenizer
from tuili.types import (
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
    stops: StopFinder
    num_tokens: int = 0
    is_finished: bool = False


@dataclass(slots=True)
class Answer:
    """Push deltas in, read events out; `is_done` after the terminal event.

    `stopped` lists answers that a stop string ended while the engine still runs them: whoever
    owns the engine's handle aborts those.
    """

    tokenizer: Tokenizer
    request: TokenRequest
    is_done: bool = False
    stopped: list[int] = field(default_factory=list)
    _streams: list[_Stream] = field(default_factory=list)
    _arrival_s: float = 0.0
    _first_token_s: float | None = None
    _num_cached_tokens: int = 0

    def __post_init__(self) -> None:
        params = self.request.sampling
        self._arrival_s = time.monotonic()
        for _ in range(params.n):
            detokenizer = (
                Detokenizer(self.tokenizer, self.request.prompt_token_ids, params.skip_special_tokens)
                if params.detokenize
                else None
            )
            self._streams.append(_Stream(detokenizer, StopFinder(params.stops, params.include_stop_str_in_output)))

    @property
    def num_running(self) -> int:
        """Answers the engine may still be at."""
        return sum(not s.is_finished for s in self._streams)

    def push(self, delta: TokenDelta) -> Iterator[Event]:
        """The events that follow from one delta. Deltas of a finished answer are ignored."""
        stream = self._streams[delta.index]
        if stream.is_finished or self.is_done:
            return
        if delta.error is not None:
            self.is_done = True
            yield Failed(delta.error)
            return
        self._num_cached_tokens = max(self._num_cached_tokens, delta.num_cached_tokens)
        if delta.token_ids and self._first_token_s is None:
            self._first_token_s = time.monotonic()
        yield from self._push_tokens(stream, delta)
        if delta.finish_reason is not None and not stream.is_finished:
            yield from self._finish(stream, delta.index, delta.finish_reason, delta.stop_token_id)

    def _push_tokens(self, stream: _Stream, delta: TokenDelta) -> Iterator[Event]:
        prompt_logprobs = delta.prompt_logprobs and tuple(
            entry and self._decoded(entry) for entry in delta.prompt_logprobs
        )
        for i, token_id in enumerate(delta.token_ids):
            stream.num_tokens += 1
            is_stop_token = delta.stop_token_id is not None and i == len(delta.token_ids) - 1
            text = ""
            if stream.detokenizer is not None and not is_stop_token:
                text = stream.detokenizer.push((token_id,))
                if stream.num_tokens > self.request.sampling.min_tokens:
                    text = stream.stops.push(text)
            logprobs = delta.logprobs and (self._decoded(delta.logprobs[i]),)
            yield TextDelta(
                index=delta.index,
                text=text,
                token_ids=(token_id,),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
            )
            prompt_logprobs = None
            if stream.stops.found is not None:
                if delta.finish_reason is None:
                    self.stopped.append(delta.index)
                yield from self._finish(stream, delta.index, "stop", stream.stops.found)
                return

    def _finish(
        self, stream: _Stream, index: int, reason: FinishReason, stop_reason: str | int | None
    ) -> Iterator[Event]:
        stream.is_finished = True
        if stream.detokenizer is not None and not isinstance(stop_reason, str):
            rest = stream.stops.push(stream.detokenizer.flush())
            if stream.stops.found is None:
                rest += stream.stops.flush()
            else:
                reason, stop_reason = "stop", stream.stops.found
            if rest:
                yield TextDelta(index=index, text=rest, token_ids=(), logprobs=self._no_logprobs())
        yield Finished(index=index, finish_reason=reason, stop_reason=stop_reason)
        if all(s.is_finished for s in self._streams):
            self.is_done = True
            yield self._done()

    def _no_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        return None if self.request.sampling.logprobs is None else ()

    def _done(self) -> Done:
        now = time.monotonic()
        first = now if self._first_token_s is None else self._first_token_s
        usage = Usage(
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self._num_cached_tokens,
            num_output_tokens=sum(s.num_tokens for s in self._streams),
        )
        return Done(usage=usage, timings=Timings(time_to_first_token_s=first - self._arrival_s, decode_s=now - first))

    def _decoded(self, entry: TokenLogprobs) -> TokenLogprobs:
        if not self.request.sampling.detokenize:
            return entry
        return {token_id: self._with_text(token_id, value) for token_id, value in entry.items()}

    def _with_text(self, token_id: int, value: Logprob) -> Logprob:
        return replace(value, decoded_token=self.tokenizer.decode([token_id], skip_special_tokens=False))
