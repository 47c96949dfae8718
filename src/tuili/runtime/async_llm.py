"""`AsyncLLM`: the same model for asyncio, under the names of vLLM's AsyncLLM."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tuili.engine.client import InProcess
from tuili.runtime.arguments import LLMArguments
from tuili.runtime.llm import Prompt, prompt_fields
from tuili.runtime.loading import open_model
from tuili.runtime.outputs import RequestOutput, empty_output
from tuili.runtime.pipeline import Pipeline
from tuili.text.pretrained import PretrainedTokenizer
from tuili.types import Event, GenerateRequest, SamplingParams

DEFAULT_MAX_SLOWDOWN = 2.0


class AsyncLLM:
    """Streams answers to many callers at once. Arguments and errors are LLM's; a long prompt of one does not stall
    the others, see max_slowdown.
    """

    def __init__(self, model: str, **arguments: Any) -> None:
        parsed = LLMArguments.parse({"max_slowdown": DEFAULT_MAX_SLOWDOWN, **arguments})
        self._seeds = random.Random(parsed.seed)
        self._pipeline: Pipeline = open_model(str(model), parsed.load_options())
        self._client = InProcess(self._pipeline.loop)

    @classmethod
    async def load(cls, model: str, **arguments: Any) -> AsyncLLM:
        """As the constructor, without blocking the event loop."""
        return await asyncio.to_thread(cls, model, **arguments)

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """The answer so far, one object that grows, after each event. Closing the iterator aborts."""
        request = self._request(prompt_fields(prompt), sampling_params, request_id)
        output = empty_output(request.request_id, request.sampling.n)
        async for event in self._pipeline.astream(request, self._client):
            yield output.fold(event)

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[Event]:
        """Events of one prompt as they happen."""
        request = self._request(prompt_fields(prompt), sampling_params, request_id)
        async for event in self._pipeline.astream(request, self._client):
            yield event

    async def abort(self, request_id: str) -> None:
        """Ends a request; its iterator finishes with finish_reason "abort"."""
        self._pipeline.loop.abort(request_id)

    def get_tokenizer(self) -> PretrainedTokenizer:
        """The model's tokenizer, speaking Hugging Face's names."""
        return self._pipeline.pretrained_tokenizer()

    def shutdown(self) -> None:
        """Ends running requests with an error and frees weights and cache."""
        self._pipeline.close()

    def _request(
        self, fields: Mapping[str, Any], params: SamplingParams | None, request_id: str | None
    ) -> GenerateRequest:
        sampling = params or SamplingParams(**dict(self._pipeline.default_sampling))
        if sampling.seed is None:
            sampling = sampling.with_seed(self._seeds.getrandbits(64))
        return GenerateRequest(request_id=request_id or uuid.uuid4().hex, sampling=sampling, **fields)
