"""This engine as a contender: requests go through a Pipeline as a caller's would, tokens are timed at its end."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence

from tuili.runtime.bench.workload import Measurement, Trace, Workload
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import Failed, GenerateRequest, SamplingParams, TextDelta


class PipelineMeter:
    """Greedy decoding of random prompts, never ending early."""

    def __init__(self, pipeline: Pipeline, rng: random.Random, name: str = "tuili") -> None:
        self._pipeline = pipeline
        self._rng = rng
        self.name = name

    def measure(self, workload: Workload) -> Measurement:
        """Raises the error of a sequence that failed."""
        prompts = workload.prompts(self._pipeline.spec.vocab_size, self._rng)
        return Measurement.of(self.trace(prompts, workload.max_tokens))

    def trace(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> Trace:
        """Runs the prompts together."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, seed=0)
        requests = [
            GenerateRequest(request_id=uuid.uuid4().hex, sampling=sampling, prompt_token_ids=prompt)
            for prompt in prompts
        ]
        times: list[list[float]] = [[] for _ in prompts]
        start = time.perf_counter()
        for index, event in self._pipeline.run(requests):
            if isinstance(event, TextDelta):
                times[index] += [time.perf_counter() - start] * len(event.token_ids)
            elif isinstance(event, Failed):
                raise event.error
        return Trace(num_prompt_tokens=sum(map(len, prompts)), token_times_s=tuple(map(tuple, times)))

    def close(self) -> None:
        self._pipeline.close()
