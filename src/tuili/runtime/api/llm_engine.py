"""`LLMEngine`: requests added one by one and outputs collected step by step, under vLLM's names."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tuili.engine.sequence import Sink
from tuili.errors import InvalidRequestError
from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.api.engine_arguments import EngineArgs
from tuili.runtime.api.outputs import OutputStream, RequestOutput
from tuili.runtime.api.prompts import Prompt, prompt_fields, refuse_adapter
from tuili.runtime.api.replicated_model import open_replicas
from tuili.runtime.front.answer import Answer, abort_stopped
from tuili.runtime.front.in_flight import Inbox
from tuili.runtime.metrics import Metric
from tuili.text.pretrained import PretrainedTokenizer
from tuili.types import GenerateRequest, SamplingParams


@dataclass(frozen=True, slots=True)
class _Running:
    answer: Answer
    stream: OutputStream
    sink: Sink


class LLMEngine:
    """A loaded model whose caller drives the loop. Arguments and errors are LLM's; one thread may use it."""

    def __init__(self, model: str, **arguments: Any) -> None:
        parsed = LLMArguments.parse(arguments)
        self._seeds = random.Random(parsed.seed)
        self._pipeline = open_replicas(model, parsed.load_options(), parsed.data_parallel_size)
        self._default_sampling = parsed.default_sampling(self._pipeline.default_sampling)
        self._inbox = Inbox()
        self._pipeline.loop.add_listener(self._inbox.flush)
        self._running: dict[str, _Running] = {}
        self._ids: dict[int, str] = {}
        self._num_added = 0

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        """Loads what the arguments name."""
        return cls(**vars(engine_args))

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        lora_request: object = None,
        priority: int = 0,
    ) -> None:
        """Hands in a request. Raises InvalidRequestError or ContextLengthError for a bad one."""
        refuse_adapter(lora_request)
        if request_id in self._running:
            raise InvalidRequestError(f"request_id {request_id!r} is already in use", param="request_id")
        sampling = params or SamplingParams(**self._default_sampling)
        sampling = sampling.clone() if sampling.seed is not None else sampling.with_seed(self._seeds.getrandbits(64))
        request = GenerateRequest(request_id=request_id, sampling=sampling, priority=priority, **prompt_fields(prompt))
        prompt_tokens, token_request = self._pipeline.token_request(request)
        sink = self._inbox.sink(self._num_added)
        stream = OutputStream(request_id, sampling.n, sampling.output_kind, sampling)
        stream.push([prompt_tokens])
        self._pipeline.loop.submit(token_request, sink)
        answer = self._pipeline.front.new_answer(request, prompt_tokens, token_request)
        self._running[request_id] = _Running(answer, stream, sink)
        self._ids[self._num_added] = request_id
        self._num_added += 1

    def step(self) -> list[RequestOutput]:
        """Waits for the next engine step: an output of each request it brought anything. Raises a request's error."""
        outputs = []
        for index, delta in self._inbox.get() if self._running else ():
            running = self._running.get(self._ids.get(index, ""))
            if running is None:
                continue  # it came late, for an answer that a stop string has already ended
            events = running.answer.push(delta)
            abort_stopped(self._pipeline.loop, running.answer)
            if running.answer.is_done:
                del self._running[self._ids.pop(index)]
            if (output := running.stream.push(events)) is not None:
                outputs.append(output)
        return outputs

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """Ends requests; their last output has finish_reason "abort"."""
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            if (running := self._running.get(request_id)) is not None:
                self._pipeline.loop.abort(request_id, sink=running.sink)

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def get_num_unfinished_requests(self) -> int:
        return len(self._running)

    def get_tokenizer(self) -> PretrainedTokenizer:
        """The model's tokenizer, speaking Hugging Face's names."""
        return self._pipeline.pretrained_tokenizer()

    def get_metrics(self) -> list[Metric]:
        """As LLM.get_metrics."""
        return self._pipeline.metrics()

    def shutdown(self) -> None:
        """Ends running requests with an error and frees weights and cache."""
        self._pipeline.close()
