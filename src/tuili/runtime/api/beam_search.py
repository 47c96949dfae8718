"""`LLM.beam_search` and AsyncLLM's: prompts in, beams out, under vLLM's names.

Knows the engine's deltas; the engine searches.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from tuili.beam_search_params import BeamSearchParams
from tuili.engine.sequence import Sink
from tuili.runtime.front.in_flight import WAITING_SHARE
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import FinishReason, GenerateRequest, Logprob, SamplingParams, TokenDelta, TokenLogprobs, TokenRequest

if TYPE_CHECKING:  # asyncio is not for blocking callers to import
    from tuili.engine.client import EngineClient


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
        flight.run(_request(pipeline, params, fields) for fields in prompts)
    finally:
        flight.end()
    return flight.outputs


async def await_beam_search(
    pipeline: Pipeline, client: EngineClient, prompts: Sequence[Mapping[str, Any]], params: BeamSearchParams
) -> list[BeamSearchOutput]:
    """As run_beam_search, for asyncio. A search that fails, or the caller's cancelling, ends the others."""
    import asyncio

    room = asyncio.Semaphore(_most_searches(pipeline, params))

    async def searched(fields: Mapping[str, Any]) -> BeamSearchOutput:
        async with room:
            request, output = _request(pipeline, params, fields), BeamSearchOutput()
            async with aclosing(client.generate(request)) as steps:
                async for deltas in steps:
                    output.sequences += [_sequence(pipeline, params, request, delta) for delta in deltas]
            return output

    tasks = [asyncio.create_task(searched(fields)) for fields in prompts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Flight:
    """A bounded number of searches at a time."""

    def __init__(self, pipeline: Pipeline, params: BeamSearchParams) -> None:
        self.outputs: list[BeamSearchOutput] = []
        self._pipeline = pipeline
        self._params = params
        self._arrived: SimpleQueue[tuple[int, TokenDelta]] = SimpleQueue()
        self._running: dict[int, tuple[TokenRequest, Sink]] = {}

    def run(self, requests: Iterator[TokenRequest]) -> None:
        most = _most_searches(self._pipeline, self._params)
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
        output = self.outputs[index]
        output.sequences.append(_sequence(self._pipeline, self._params, request, delta))
        if len(output.sequences) == self._params.beam_width:
            del self._running[index]


def _most_searches(pipeline: Pipeline, params: BeamSearchParams) -> int:
    return max(WAITING_SHARE * pipeline.max_num_seqs // params.beam_width, 1)


def _request(pipeline: Pipeline, p: BeamSearchParams, fields: Mapping[str, Any]) -> TokenRequest:
    """A search as the engine is asked for it."""
    sampling = SamplingParams(n=p.beam_width, seed=0, max_tokens=p.max_tokens, ignore_eos=p.ignore_eos)
    generate = GenerateRequest(request_id=uuid.uuid4().hex, sampling=sampling, beam_search=p, **fields)
    return pipeline.token_request(generate)[1]


def _sequence(pipeline: Pipeline, p: BeamSearchParams, request: TokenRequest, delta: TokenDelta) -> BeamSearchSequence:
    """The beam that a terminal delta brings. Raises its error."""
    if delta.error is not None:
        raise delta.error
    assert delta.beam is not None
    tokens = [*request.prompt_token_ids, *delta.token_ids]
    hides_last = delta.stop_token_id is not None and not p.include_stop_str_in_output
    skips = p.skip_special_tokens and not p.include_stop_str_in_output
    return BeamSearchSequence(
        tokens=tokens,
        logprobs=[{i: Logprob(logprob)} for i, logprob in zip(delta.token_ids, delta.beam.logprobs, strict=True)],
        cum_logprob=delta.beam.cumulative_logprob,
        score=delta.beam.score,
        text=pipeline.tokenizer.decode(tokens[:-1] if hides_last else tokens, skip_special_tokens=skips),
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_token_id,
    )
