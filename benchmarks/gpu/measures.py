"""What is measured of one loaded model, driven by token ids through the engine, against the machine's own limits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from benchmarks.gpu.records import Record, Recorder
from benchmarks.gpu.shapes import Cost, decode_cost, prefill_cost
from benchmarks.gpu.timing import copy_rate, matmul_rate

from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor
from tuili.types import SamplingParams, TokenDelta, TokenRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large every measurement is."""

    decode_tokens: int = 256
    order_tokens: int = 96
    warm_steps: int = 16  # before a decode counts: kernels, tiles and graphs of its shape are there by then
    batch: int = 64
    context: int = 1024  # in the middle of a batch's decode
    batch_tokens: int = 128
    prefill: tuple[int, int] = (8, 2048)
    first_token_prompt: int = 512
    repeats: int = 7
    peer_tokens: int = 64
    programs: int = 10
    program_prompt: int = 160
    program_tokens: int = 1500
    max_model_len: int = 4096
    cache_bytes: int = 24 << 30


FULL = Sizes()
SMOKE = Sizes(
    decode_tokens=5, order_tokens=5, warm_steps=2, batch=3, context=20, batch_tokens=8, prefill=(2, 30),
    first_token_prompt=16, repeats=2, peer_tokens=4, programs=2, program_prompt=8, program_tokens=4, max_model_len=64,
    cache_bytes=4 << 20,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """Measured in this process: torch's copy, bytes read and written, and its bfloat16 product."""

    bytes_per_s: float
    operations_per_s: float


@cache
def limits(device: torch.device) -> Limits:
    is_tiny = device.type != "cuda"
    dtype = torch.float32 if is_tiny else torch.bfloat16
    copied = copy_rate(device, 1 << 20 if is_tiny else 4 << 30)
    return Limits(copied, matmul_rate(device, 128 if is_tiny else 8192, dtype))


@dataclass(frozen=True, slots=True)
class Run:
    """How a batch of requests went: seconds from its start of each step's end, and what each request got when."""

    total_s: float
    step_ends: list[float]
    tokens: list[list[int]]
    token_times: list[list[float]]


class LoadedModel:
    """A model on a device and an engine on top of it."""

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        device: torch.device,
        sizes: Sizes,
        *,
        enforce_eager: bool = False,
    ) -> None:
        self.name, self.spec, self.device, self.sizes = name, spec, device, sizes
        started = time.perf_counter()
        options = BackendOptions(max_model_len=sizes.max_model_len, device=str(device), enforce_eager=enforce_eager)
        self.backend: Backend = load_backend("torch", spec, weights, options)
        self.load_s = time.perf_counter() - started
        config = EngineConfig(
            max_model_len=sizes.max_model_len,
            max_num_seqs=max(sizes.batch, 1),
            max_num_batched_tokens=max(sizes.prefill[0] * sizes.prefill[1], sizes.batch),
            kv_cache_memory_bytes=sizes.cache_bytes,
            enable_prefix_caching=False,
            kv_cache_dtype="auto",
        )
        self.engine = Engine(self.backend, config)
        self._num_requests = 0

    @property
    def weight_bytes(self) -> int:
        num_bytes: int = self.backend.weight_bytes  # type: ignore[attr-defined]
        return num_bytes

    def prompts(self, number: int, length: int) -> list[tuple[int, ...]]:
        """Random ones, never the same."""
        generator = np.random.default_rng(self._num_requests)
        return [tuple(map(int, row)) for row in generator.integers(0, self.spec.vocab_size, (number, length))]

    def run(self, prompts: Sequence[tuple[int, ...]], max_tokens: int, **sampling: int) -> Run:
        """All at once, greedily, to the last token. Raises what any of them ended with."""
        run = Run(0.0, [], [[] for _ in prompts], [[] for _ in prompts])
        started = time.perf_counter()
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **sampling)
        for i, prompt in enumerate(prompts):
            self._num_requests += 1

            def take(delta: TokenDelta, i: int = i) -> None:
                if delta.error is not None:
                    raise delta.error
                run.tokens[i].extend(delta.token_ids)
                run.token_times[i].extend([time.perf_counter() - started] * len(delta.token_ids))

            request_id = f"r{self._num_requests}"
            self.engine.add(TokenRequest(request_id=request_id, prompt_token_ids=prompt, sampling=params, seed=0), take)
        while True:
            goes_on = self.engine.step()
            run.step_ends.append(time.perf_counter() - started)
            if not goes_on:
                break
        assert [len(tokens) for tokens in run.tokens] == [max_tokens] * len(prompts), "a request ended early"
        return Run(time.perf_counter() - started, run.step_ends, run.tokens, run.token_times)

    def close(self) -> None:
        self.engine.close()
        self.backend.close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def decode_seconds(run: Run, warm_steps: int) -> float:
    """Mean seconds of a step in which all run: the last request has had so many tokens, and none has had its last."""
    times, end = run.token_times[-1], min(times[-1] for times in run.token_times)
    counted = [t for t in times[warm_steps:] if t <= end]
    assert len(counted) > 1, "no step ran the whole batch: more tokens are needed"
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def measured(model: LoadedModel, name: str, seconds: float, batch_tokens: int, cost: Cost, by: str) -> Record:
    """by: the limit that binds, "bytes" or "operations"."""
    limit = limits(model.device)
    least = cost.num_bytes / limit.bytes_per_s if by == "bytes" else cost.operations / limit.operations_per_s
    return {
        "name": f"{model.name} {name}", "value": batch_tokens / seconds, "unit": "tokens/s", "seconds": seconds,
        "share_of_limit": least / seconds, "limit": by, "bytes": cost.num_bytes, "operations": cost.operations,
    }  # fmt: skip


def decode_alone(model: LoadedModel) -> Iterator[Record]:
    sizes, prompt_len = model.sizes, 32 if model.device.type == "cuda" else 4
    run = model.run(model.prompts(1, prompt_len), sizes.decode_tokens)
    cost = decode_cost(model.spec, model.weight_bytes, 1, prompt_len + sizes.decode_tokens // 2)
    record = measured(model, "decode B=1", decode_seconds(run, sizes.warm_steps), 1, cost, "bytes")
    one_row = cast(Any, model.backend).one_row
    yield record | {"one_row": "no choice" if one_row is None else one_row.told()}


def decode_orders(model: LoadedModel) -> Iterator[Record]:
    """B=1 without what keeps the device from waiting for the host."""
    sizes, prompt_len, backend = model.sizes, 32 if model.device.type == "cuda" else 4, cast(Any, model.backend)
    as_loaded = backend.is_asynchronous, backend.graphs
    try:
        for is_ahead, has_graphs in ((False, False), (False, True), (True, False)):
            backend.is_asynchronous, backend.graphs = is_ahead, as_loaded[1] if has_graphs else None
            seconds = decode_seconds(model.run(model.prompts(1, prompt_len), sizes.order_tokens), sizes.warm_steps)
            how = f"{'with' if has_graphs else 'without'} graphs, steps {'ahead' if is_ahead else 'in turn'}"
            name = f"{model.name} decode B=1 {how}"
            yield {"name": name, "value": 1 / seconds, "unit": "tokens/s", "seconds": seconds}
    finally:  # whatever comes next is measured as it was loaded
        backend.is_asynchronous, backend.graphs = as_loaded


def decode_batch(model: LoadedModel) -> Iterator[Record]:
    """All of the batch run from the first of the counted steps on: the last request was the last to be admitted."""
    sizes = model.sizes
    run = model.run(model.prompts(sizes.batch, sizes.context - sizes.batch_tokens // 2), sizes.batch_tokens)
    seconds = decode_seconds(run, sizes.warm_steps)
    cost = decode_cost(model.spec, model.weight_bytes, sizes.batch, sizes.context)
    yield measured(model, f"decode B={sizes.batch} at {sizes.context}", seconds, sizes.batch, cost, "bytes")


def prefill(model: LoadedModel) -> Iterator[Record]:
    number, length = model.sizes.prefill
    model.run(model.prompts(number, length), 1)
    seconds = median(model.run(model.prompts(number, length), 1).total_s for _ in range(3))
    cost = prefill_cost(model.spec, model.weight_bytes, number, length)
    yield measured(model, f"prefill {number} x {length}", seconds, number * length, cost, "operations")


def first_token(model: LoadedModel) -> Iterator[Record]:
    length, times = model.sizes.first_token_prompt, []
    for _ in range(model.sizes.repeats):
        times.append(model.run(model.prompts(1, length), 1).token_times[0][0])
    yield {
        "name": f"{model.name} first token of {length}", "value": median(times[1:]) * 1000, "unit": "ms",
        "all_ms": [t * 1000 for t in times],
    }  # fmt: skip


def measure_all(recorder: Recorder, model: LoadedModel) -> None:
    """Each on its own: one that fails keeps none of the others from running."""
    for measure in (decode_alone, decode_batch, prefill, first_token):
        recorder.attempt(f"{model.name} {measure.__name__}", partial(measure, model))
