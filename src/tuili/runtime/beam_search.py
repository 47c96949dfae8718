"""`LLM.beam_search`: prompts in, beams out, under vLLM's names. Knows the engine loop's deltas; the engine searches."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from tuili.beam_search_params import BeamSearchParams
from tuili.engine.sequence import Sink
from tuili.runtime.in_flight import WAITING_SHARE
from tuili.runtime.pipeline import Pipeline
from tuili.types import FinishReason, GenerateRequest, Logprob, SamplingParams, TokenDelta, TokenLogprobs, TokenRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamSearchSequence:
    """One beam. tokens and text hold the prompt too, as vLLM has it; score is what beams are ordered by.

    The token that ended it is among the tokens, and in the text with include_stop_str_in_output.
    """

    tokens: list[int]
    logprobs: list[TokenLogprobs]  # of the tokens after the prompt
    cum_logprob: float
    score: float
    text: str
    finish_reason: FinishReason | None
    stop_reason: int | None


@dataclass(slots=True)
class BeamSearchOutput:
    """The beams of one prompt, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)


def run_beam_search(
    pipeline: Pipeline, prompts: Iterable[Mapping[str, Any]], params: BeamSearchParams
) -> list[BeamSearchOutput]:
    """prompts: GenerateRequest fields. Answers come in the order of the prompts.

    Raises what Pipeline.stream raises, and the error of a request that failed.
    """
    flight = _Flight(pipeline, params)
    try:
        flight.run(flight.request(fields) for fields in prompts)
    finally:
        flight.end()
    return flight.outputs


class _Flight:
    """A bounded number of searches at a time."""

    def __init__(self, pipeline: Pipeline, params: BeamSearchParams) -> None:
        self.outputs: list[BeamSearchOutput] = []
        self._pipeline = pipeline
        self._params = params
        self._arrived: SimpleQueue[tuple[int, TokenDelta]] = SimpleQueue()
        self._running: dict[int, tuple[TokenRequest, Sink]] = {}

    def request(self, fields: Mapping[str, Any]) -> TokenRequest:
        """A search as the engine is asked for it."""
        p = self._params
        sampling = SamplingParams(n=p.beam_width, seed=0, max_tokens=p.max_tokens, ignore_eos=p.ignore_eos)
        generate = GenerateRequest(request_id=uuid.uuid4().hex, sampling=sampling, beam_search=p, **fields)
        return self._pipeline.token_request(generate)[1]

    def run(self, requests: Iterator[TokenRequest]) -> None:
        most = max(WAITING_SHARE * self._pipeline.max_num_seqs // self._params.beam_width, 1)
        is_exhausted = False
        while self._running or not is_exhausted:
            while len(self._running) < most and not is_exhausted:
                request = next(requests, None)
                is_exhausted = request is None
                if request is not None:
                    self._submit(request)
            if self._running:
                self._take(*self._arrived.get())

    def end(self) -> None:
        """Aborts what still runs."""
        for request, sink in self._running.values():
            self._pipeline.loop.abort(request.request_id, sink=sink)

    def _submit(self, request: TokenRequest) -> None:
        index = len(self.outputs)

        def sink(delta: TokenDelta) -> None:
            self._arrived.put((index, delta))

        self._pipeline.loop.submit(request, sink)
        self._running[index] = (request, sink)
        self.outputs.append(BeamSearchOutput())

    def _take(self, index: int, delta: TokenDelta) -> None:
        if index not in self._running:
            return
        request, _ = self._running[index]
        if delta.error is not None:
            raise delta.error
        output = self.outputs[index]
        output.sequences.append(self._sequence(request, delta))
        if len(output.sequences) == self._params.beam_width:
            del self._running[index]

    def _sequence(self, request: TokenRequest, delta: TokenDelta) -> BeamSearchSequence:
        assert delta.beam is not None
        tokens = [*request.prompt_token_ids, *delta.token_ids]
        hides_last = delta.stop_token_id is not None and not self._params.include_stop_str_in_output
        skips = self._params.skip_special_tokens and not self._params.include_stop_str_in_output
        return BeamSearchSequence(
            tokens=tokens,
            logprobs=[{i: Logprob(logprob)} for i, logprob in zip(delta.token_ids, delta.beam.logprobs, strict=True)],
            cum_logprob=delta.beam.cumulative_logprob,
            score=delta.beam.score,
            text=self._pipeline.tokenizer.decode(tokens[:-1] if hides_last else tokens, skip_special_tokens=skips),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_token_id,
        )
