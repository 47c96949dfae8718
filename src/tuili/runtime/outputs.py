"""The result objects of the Python API, under vLLM's names, and the fold from events to them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tuili.types import (
    Done,
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptTokens,
    RequestOutputKind,
    SamplingParams,
    TextDelta,
    Timings,
    TokenLogprobs,
    Usage,
)


@dataclass(slots=True)
class CompletionOutput:
    """One answer. logprobs holds one dict per token when asked for; finish_reason is None while it runs.

    reasoning is what the model thought before `text`, where that was asked to be told apart.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    reasoning: str = ""

    def finished(self) -> bool:
        """Whether nothing more will be added."""
        return self.finish_reason is not None

    def copy(self) -> CompletionOutput:
        """The answer as it is now, which later tokens do not change."""
        logprobs = None if self.logprobs is None else list(self.logprobs)
        return replace(self, token_ids=list(self.token_ids), logprobs=logprobs)

    def since(self, text_len: int, num_tokens: int, reasoning_len: int = 0) -> CompletionOutput:
        """What came after the first characters and tokens, so many of each."""
        logprobs = None if self.logprobs is None else self.logprobs[num_tokens:]
        text, reasoning = self.text[text_len:], self.reasoning[reasoning_len:]
        return replace(self, text=text, token_ids=self.token_ids[num_tokens:], logprobs=logprobs, reasoning=reasoning)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestMetrics:
    """When things happened. Names ending in _ts are seconds of the monotonic clock, in _time of the wall clock.

    Both of vLLM's vocabularies are here: that of RequestStateStats, and the older one of its RequestMetrics.
    """

    num_generation_tokens: int
    arrival_time: float
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float

    @classmethod
    def of(cls, usage: Usage, timings: Timings) -> RequestMetrics:
        """The moments behind a finished request's durations."""
        arrival, first = timings.arrival_s, timings.arrival_s + timings.time_to_first_token_s
        return cls(
            num_generation_tokens=usage.num_output_tokens,
            arrival_time=time.time() - (time.monotonic() - arrival),
            queued_ts=arrival,
            scheduled_ts=arrival + timings.queue_s,
            first_token_ts=first,
            last_token_ts=first + timings.decode_s,
        )

    @property
    def first_token_latency(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first_token_ts - self.queued_ts

    @property
    def time_in_queue(self) -> float:
        """Seconds from arrival until the engine began."""
        return self.scheduled_ts - self.queued_ts

    @property
    def first_scheduled_time(self) -> float:
        return self.arrival_time + self.time_in_queue

    @property
    def first_token_time(self) -> float:
        return self.arrival_time + self.first_token_latency

    @property
    def last_token_time(self) -> float:
        return self.arrival_time + self.last_token_ts - self.queued_ts

    @property
    def finished_time(self) -> float:
        return self.last_token_time


@dataclass(slots=True)
class RequestOutput:
    """A request and its answers, in order of their index.

    num_cached_tokens counts prompt tokens whose keys and values were reused. metrics is set at the end. sampling_params
    are those in effect, the seed that was drawn among them: given again, they bring the same answers.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    sampling_params: SamplingParams | None = field(default=None, repr=False)

    def fold(self, event: Event) -> RequestOutput:
        """Takes in the next event. Raises the error of a Failed one."""
        if isinstance(event, TextDelta):
            self._extend(self.outputs[event.index], event)
        elif isinstance(event, PromptTokens):
            self.prompt, self.prompt_token_ids = event.text, list(event.token_ids)
        elif isinstance(event, Finished):
            output = self.outputs[event.index]
            output.finish_reason, output.stop_reason = event.finish_reason, event.stop_reason
        elif isinstance(event, Done):
            self.finished, self.metrics = True, RequestMetrics.of(event.usage, event.timings)
            self.num_cached_tokens = event.usage.num_cached_tokens
        elif isinstance(event, Failed):
            raise event.error
        return self

    def copy(self) -> RequestOutput:
        """The output as it is now, which later events do not change."""
        return replace(self, outputs=[output.copy() for output in self.outputs])

    def _extend(self, output: CompletionOutput, delta: TextDelta) -> None:
        output.text += delta.text
        output.reasoning += delta.reasoning
        output.token_ids.extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = list(delta.prompt_logprobs)
        if delta.logprobs is None:
            return
        output.logprobs = output.logprobs or []
        output.logprobs.extend(delta.logprobs)
        chosen = sum(entry[token].logprob for entry, token in zip(delta.logprobs, delta.token_ids, strict=True))
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + chosen


def empty_output(request_id: str, n: int, sampling: SamplingParams | None = None) -> RequestOutput:
    """The output of a request before its first event."""
    return RequestOutput(request_id, None, [], [CompletionOutput(i) for i in range(n)], sampling_params=sampling)


def collect(request_id: str, n: int, events: Iterable[Event]) -> RequestOutput:
    """The blocking answer: a fold over the streamed events."""
    output = empty_output(request_id, n)
    for event in events:
        output.fold(event)
    return output


class OutputStream:
    """A request's events, a step at a time, as the outputs its output_kind asks for."""

    def __init__(
        self, request_id: str, n: int, kind: RequestOutputKind, sampling: SamplingParams | None = None
    ) -> None:
        self._output = empty_output(request_id, n, sampling)
        self._kind = kind
        self._told = [
            (0, 0, 0, False)
        ] * n  # of each answer: characters, tokens, characters of reasoning, and whether it ended

    @property
    def is_finished(self) -> bool:
        return self._output.finished

    def push(self, events: Sequence[Event]) -> RequestOutput | None:
        """Takes in events; the output to hand out after them, if there is anything to tell."""
        for event in events:
            self._output.fold(event)
        if self._kind is RequestOutputKind.FINAL_ONLY:
            return self._output if self._output.finished else None
        if not any(isinstance(event, TextDelta | Finished) for event in events):
            return None
        return self._output.copy() if self._kind is RequestOutputKind.CUMULATIVE else self._delta()

    def _delta(self) -> RequestOutput:
        """Only the answers that changed, and of those only what is new."""
        changed = []
        for i, output in enumerate(self._output.outputs):
            now = (len(output.text), len(output.token_ids), len(output.reasoning), output.finished())
            if now != self._told[i]:
                changed.append(output.since(*self._told[i][:3]))
                self._told[i] = now
        return replace(self._output, outputs=changed)
