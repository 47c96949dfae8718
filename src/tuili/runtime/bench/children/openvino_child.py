"""OpenVINO GenAI on the CPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from serve import Run


def open_peer(model: str, num_threads: str, attention: str, max_num_seqs: str, max_len: str) -> tuple[str, Run]:
    """`attention`: paged or stateful."""
    properties = {"INFERENCE_NUM_THREADS": int(num_threads)}
    if attention == "paged":
        run = _paged(model, properties, int(max_num_seqs), int(max_len))
    else:
        run = _stateful(model, properties)
    return openvino_genai.get_version(), run


def _generation(max_tokens: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def _input_ids(prompt: list[int]) -> Any:
    return openvino.Tensor(np.array([prompt], np.int64))


def _paged(model: str, properties: dict[str, int], max_num_seqs: int, max_len: int) -> Run:
    """Continuous batching over paged attention; the cache grows as needed."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = max(2048, max_len)
    scheduler.max_num_seqs = max_num_seqs
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def run(prompts: list[list[int]], max_tokens: int) -> list[list[float]]:
        config = _generation(max_tokens)
        handles = [pipeline.add_request(i, _input_ids(prompt), config) for i, prompt in enumerate(prompts)]
        times: list[list[float]] = [[] for _ in prompts]
        start = time.perf_counter()
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter() - start
            for handle, own in zip(handles, times, strict=True):
                while handle.can_read():
                    own += [now] * sum(len(output.generated_ids) for output in handle.read().values())
        return times

    return run


def _stateful(model: str, properties: dict[str, int]) -> Run:
    """One sequence at a time, keys and values inside the model."""
    pipeline = openvino_genai.LLMPipeline(model, "CPU", ATTENTION_BACKEND="SDPA", **properties)

    def run(prompts: list[list[int]], max_tokens: int) -> list[list[float]]:
        (prompt,) = prompts
        clock = _Clock()
        pipeline.generate(_input_ids(prompt), _generation(max_tokens), clock)
        return [clock.times]

    return run


class _Clock(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Notes when each token came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self._start = time.perf_counter()

    def write(self, token: Any) -> Any:
        self.times += [time.perf_counter() - self._start] * (len(token) if isinstance(token, list) else 1)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""
