"""The result objects of the Python API, under vLLM's names, and the fold from events to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tuili.types import (
    Done,
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptTokens,
    TextDelta,
    Timings,
    TokenLogprobs,
)


@dataclass(slots=True)
class CompletionOutput:
    """One answer. logprobs holds one dict per token when asked for; finish_reason is None while it runs."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def finished(self) -> bool:
        """Whether nothing more will be added."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request and its answers, in order of their index.

    num_cached_tokens counts prompt tokens whose keys and values were reused. metrics is set at the end.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    metrics: Timings | None = None

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
            self.finished, self.metrics = True, event.timings
            self.num_cached_tokens = event.usage.num_cached_tokens
        elif isinstance(event, Failed):
            raise event.error
        return self

    def _extend(self, output: CompletionOutput, delta: TextDelta) -> None:
        output.text += delta.text
        output.token_ids.extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = list(delta.prompt_logprobs)
        if delta.logprobs is None:
            return
        output.logprobs = output.logprobs or []
        output.logprobs.extend(delta.logprobs)
        chosen = sum(entry[token].logprob for entry, token in zip(delta.logprobs, delta.token_ids, strict=True))
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + chosen


def empty_output(request_id: str, n: int) -> RequestOutput:
    """The output of a request before its first event."""
    return RequestOutput(request_id, None, [], [CompletionOutput(i) for i in range(n)])


def collect(request_id: str, n: int, events: Iterable[Event]) -> RequestOutput:
    """The blocking answer: a fold over the streamed events."""
    output = empty_output(request_id, n)
    for event in events:
        output.fold(event)
    return output
