"""`AsyncLLM`: the same model for asyncio, under the names of vLLM's AsyncLLM (and AsyncLLMEngine)."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from tuili.engine.client import InProcess
from tuili.errors import EngineUnavailableError, TuiliError
from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.api.beam_search import BeamSearchOutput, await_beam_search
from tuili.runtime.api.engine_arguments import EngineArgs
from tuili.runtime.api.outputs import OutputStream, RequestOutput
from tuili.runtime.api.prompts import Prompt, prompt_fields, prompt_list, refuse_adapter
from tuili.runtime.api.replicated_model import open_replicas
from tuili.runtime.front.sampling_defaults import EffectiveValue, effective_params
from tuili.runtime.loading.pipeline import Pipeline
from tuili.runtime.metrics import Metric
from tuili.text.pretrained import PretrainedTokenizer
from tuili.types import BeamSearchParams, Event, GenerateRequest, SamplingParams

DEFAULT_MAX_SLOWDOWN = 2.0


class AsyncLLM:
    """Streams answers to many callers at once. Arguments and errors are LLM's; a long prompt of one does not stall
    the others, see max_slowdown.
    """

    def __init__(self, model: str, **arguments: Any) -> None:
        parsed = LLMArguments.parse({"max_slowdown": DEFAULT_MAX_SLOWDOWN, **arguments})
        self._seeds = random.Random(parsed.seed)
        self._pipeline: Pipeline = open_replicas(model, parsed.load_options(), parsed.data_parallel_size)
        self._default_sampling = parsed.default_sampling(self._pipeline.default_sampling)
        self._client = InProcess(self._pipeline.loop)

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_: object) -> AsyncLLM:
        """Loads what the arguments name; vLLM's other parameters, of how it runs itself, mean nothing here."""
        return cls(**vars(engine_args))

    @classmethod
    async def load(cls, model: str, **arguments: Any) -> AsyncLLM:
        """As the constructor, without blocking the event loop."""
        return await asyncio.to_thread(cls, model, **arguments)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: object = None,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs after each step that brought something, as sampling_params.output_kind says: all so far (the
        default), only what is new, or one at the end. Each is a value of its own. Closing the iterator aborts.
        """
        refuse_adapter(lora_request)
        request = self._request(prompt, sampling_params, request_id, priority)
        sampling = request.sampling
        stream = OutputStream(request.request_id, sampling.n, sampling.output_kind, sampling)
        async with aclosing(self._pipeline.front.answer(request, self._client)) as steps:
            async for events in steps:
                if (output := stream.push(events)) is not None:
                    yield output

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[Event]:
        """Events of one prompt as they happen."""
        request = self._request(prompt, sampling_params, request_id, 0)
        async with aclosing(self._pipeline.front.answer(request, self._client)) as steps:
            async for events in steps:
                for event in events:
                    yield event

    async def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, lora_request: object = None
    ) -> list[BeamSearchOutput]:
        """As LLM.beam_search: the beams of each prompt once all are found. Cancelling it ends the searches."""
        refuse_adapter(lora_request)
        fields = [prompt_fields(prompt) for prompt in prompt_list(prompts)]
        return await await_beam_search(self._pipeline, self._client, fields, params)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends a request, or several; their iterators finish with finish_reason "abort"."""
        for one in [request_id] if isinstance(request_id, str) else request_id:
            self._pipeline.loop.abort(one)

    def get_tokenizer(self) -> PretrainedTokenizer:
        """The model's tokenizer, speaking Hugging Face's names."""
        return self._pipeline.pretrained_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config asks for, else the library's defaults."""
        return SamplingParams(**self._default_sampling)

    def effective_sampling(self, sampling_params: SamplingParams | None = None) -> list[EffectiveValue]:
        """As LLM.effective_sampling."""
        return effective_params(sampling_params, self._default_sampling)

    def get_metrics(self) -> list[Metric]:
        """As LLM.get_metrics."""
        return self._pipeline.metrics()

    async def reset_prefix_cache(self) -> bool:
        """As LLM.reset_prefix_cache."""
        return self._pipeline.reset_prefix_cache()

    async def check_health(self) -> None:
        """Raises EngineUnavailableError unless requests can be answered."""
        if self.errored:
            raise self.dead_error

    async def do_log_stats(self) -> None:
        """Nothing: this library never logs statistics by itself; get_metrics has them."""

    @property
    def is_running(self) -> bool:
        """Whether requests can be answered."""
        return self._pipeline.loop.is_open

    @property
    def errored(self) -> bool:
        return not self.is_running

    @property
    def dead_error(self) -> TuiliError:
        """What requests end with once the engine is gone."""
        return EngineUnavailableError("the engine is closed")

    def shutdown(self) -> None:
        """Ends running requests with an error and frees weights and cache."""
        self._pipeline.close()

    def _request(
        self, prompt: Prompt, params: SamplingParams | None, request_id: str | None, priority: int
    ) -> GenerateRequest:
        sampling = params or self.get_default_sampling_params()
        sampling = sampling.clone() if sampling.seed is not None else sampling.with_seed(self._seeds.getrandbits(64))
        fields: Mapping[str, Any] = prompt_fields(prompt)
        return GenerateRequest(
            request_id=request_id or uuid.uuid4().hex, sampling=sampling, priority=priority, **fields
        )


AsyncLLMEngine = AsyncLLM
