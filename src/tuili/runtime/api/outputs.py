"""The result objects of the Python API, under vLLM's names, and the fold from events to them.

Batches keep many of them: token ids take four bytes each and are read as lists, sampling parameters are kept once.
"""

from __future__ import annotations

import copy
import struct
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

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
        return replace(self, token_ids=_packed(self)[:], logprobs=logprobs)  # type: ignore[arg-type]

    def since(self, text_len: int, num_tokens: int, reasoning_len: int = 0) -> CompletionOutput:
        """What came after the first characters and tokens, so many of each."""
        logprobs = None if self.logprobs is None else self.logprobs[num_tokens:]
        text, reasoning = self.text[text_len:], self.reasoning[reasoning_len:]
        ids: Any = _packed(self)[num_tokens:]
        return replace(self, text=text, token_ids=ids, logprobs=logprobs, reasoning=reasoning)


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
            self.prompt, self.prompt_token_ids = event.text, event.token_ids  # type: ignore[assignment]
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
        return self._with([output.copy() for output in self.outputs])

    def _with(self, outputs: list[CompletionOutput]) -> RequestOutput:
        return replace(self, outputs=outputs, prompt_token_ids=_PROMPT_IDS.__get__(self))

    def _extend(self, output: CompletionOutput, delta: TextDelta) -> None:
        output.text += delta.text
        output.reasoning += delta.reasoning
        _packed(output).extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = list(delta.prompt_logprobs)
        if delta.logprobs is None:
            return
        output.logprobs = output.logprobs or []
        output.logprobs.extend(delta.logprobs)
        chosen = sum(entry[token].logprob for entry, token in zip(delta.logprobs, delta.token_ids, strict=True))
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + chosen


def _packed(output: CompletionOutput) -> array[int]:
    ids: array[int] = _TOKEN_IDS.__get__(output)
    return ids


def _ids_property(slot: Any) -> Any:
    """Ids over a slot with an array of them, which is shared where it is given. What is read is a list of its own."""

    def write(output: object, ids: Iterable[int]) -> None:
        slot.__set__(output, ids if isinstance(ids, array) else array("i", ids))

    return property(lambda output: slot.__get__(output).tolist(), write)


def _params_property(slot: Any) -> Any:
    """Parameters over a slot that may hold (parameters, seed) instead: the same with another seed."""

    def read(output: object) -> SamplingParams | None:
        found: SamplingParams | tuple[SamplingParams, int | None] | None = slot.__get__(output)
        if not isinstance(found, tuple):
            return found
        params = copy.copy(found[0])
        object.__setattr__(params, "seed", found[1])
        return params

    return property(read, slot.__set__)


def _metrics_property(slot: Any) -> Any:
    """Metrics over a slot with their bytes."""

    def read(output: object) -> RequestMetrics | None:
        packed = slot.__get__(output)
        return None if packed is None else RequestMetrics(**dict(zip(_METRICS, _LAYOUT.unpack(packed), strict=True)))

    def write(output: object, metrics: RequestMetrics | None) -> None:
        packed = None if metrics is None else _LAYOUT.pack(*(getattr(metrics, name) for name in _METRICS))
        slot.__set__(output, packed)

    return property(read, write)


_METRICS = tuple(field.name for field in fields(RequestMetrics))
_LAYOUT = struct.Struct("q5d")  # num_generation_tokens, then moments
_COMPLETION: Any = CompletionOutput  # whose slots are wrapped
_REQUEST: Any = RequestOutput
_TOKEN_IDS, _PROMPT_IDS = _COMPLETION.token_ids, _REQUEST.prompt_token_ids
_COMPLETION.token_ids, _REQUEST.prompt_token_ids = _ids_property(_TOKEN_IDS), _ids_property(_PROMPT_IDS)
_REQUEST.metrics = _metrics_property(_REQUEST.metrics)
_REQUEST.sampling_params = _params_property(_REQUEST.sampling_params)
_BUT_SEED = tuple(field.name for field in fields(SamplingParams) if field.name != "seed")


class SharedParams:
    """Keeps what outputs say of their sampling parameters once for all that differ in their seed alone."""

    def __init__(self) -> None:
        self._last: SamplingParams | None = None

    def __call__(self, params: SamplingParams) -> Any:
        """What to give empty_output for `params`."""
        if self._last is None or any(getattr(self._last, name) != getattr(params, name) for name in _BUT_SEED):
            self._last = params
        return self._last, params.seed


def empty_output(request_id: str, n: int, sampling: Any = None) -> RequestOutput:
    """The output of a request before its first event. sampling: SamplingParams, or what SharedParams gives for them."""
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
            now = (len(output.text), len(_packed(output)), len(output.reasoning), output.finished())
            if now != self._told[i]:
                changed.append(output.since(*self._told[i][:3]))
                self._told[i] = now
        return self._output._with(changed)
