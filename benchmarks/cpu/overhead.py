"""What a decode step costs outside the kernels: scheduling, arrays, deltas, events, text.

    python benchmarks/cpu/overhead.py MODEL.gguf [--batch 1 8 32 64] [--threads 2] [--rounds 5] [--save NAME]
    python benchmarks/cpu/overhead.py --null [--batch 64 512]

Greedy decoding goes the whole way of LLM.generate: pipeline, engine, detokenizer, output objects. Each
round does so twice: over the kernels, and over a stand-in for them that answers at once, so that what
is left is the Python of a step, in processor time, on whatever thread it runs. With --null the engine runs alone over a
backend that computes nothing, while many sequences wait.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuili.backend import Batch, CacheGroup, StepHandle, StepResult
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.runtime.api.outputs import empty_output
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import GenerateRequest, SamplingParams, TokenRequest

sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

PROMPT_LEN, DECODE_LEN = 32, 64

Execute = Callable[[Batch], StepHandle]


class Timed:
    """A backend's execute, which notes when each step of a whole batch began and ended."""

    def __init__(self, execute: Execute, batch_size: int) -> None:
        self._execute = execute
        self._batch_size = batch_size
        self._begun: list[float] = []
        self._ended: list[float] = []

    def __call__(self, batch: Batch) -> StepHandle:
        begun = time.perf_counter()
        handle = self._execute(batch)
        if len(batch.input_ids) == len(batch.seq_lens) == self._batch_size:
            self._begun.append(begun)
            self._ended.append(time.perf_counter())
        return handle

    def seconds(self) -> tuple[float, float]:
        """Of a step: as a whole, and inside execute."""
        steps = np.diff(self._begun)
        return float(np.median(steps)), float(np.median(np.subtract(self._ended, self._begun)))


class StandIn:
    """In the place of a backend's execute: chooses the given tokens in turn, at once."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = np.array(tokens, np.int32)
        self._num_steps = 0

    def __call__(self, batch: Batch) -> StandIn:
        self._num_steps += 1
        self._num_rows = len(batch.sample_rows)
        return self

    def result(self) -> StepResult:
        rows = self._num_rows
        return StepResult(
            token_ids=self._tokens[(self._num_steps + np.arange(rows)) % self._tokens.size],
            logprobs=np.zeros(rows, np.float32),
            ranks=np.zeros(rows, np.int32),
            top_ids=np.zeros((rows, 0), np.int32),
            top_logprobs=np.zeros((rows, 0), np.float32),
            sampler_state=np.full(rows, np.nan, np.float32),
        )


def measure(model: Pipeline, batch_size: int, rounds: int) -> dict[str, float]:
    """Medians over rounds, per step of `batch_size` sequences."""
    backend: Any = model.backend
    execute = backend.execute
    measured = []
    for _ in range(rounds):
        timed = backend.execute = Timed(execute, batch_size)
        tokens = _generate(model, batch_size, DECODE_LEN)
        backend.execute = StandIn(tokens)
        measured.append((*timed.seconds(), _python_seconds(model, batch_size)))
    backend.execute = execute
    step, inside, python = (statistics.median(column) for column in zip(*measured, strict=True))
    return {
        "batch": batch_size,
        "step_ms": round(step * 1e3, 3),
        "backend_ms": round(inside * 1e3, 3),
        "overhead_us": round(python * 1e6, 1),
        "overhead_percent": round(100 * python / (inside + python), 2),
        "us_per_sequence": round(python * 1e6 / batch_size, 2),
    }


def _python_seconds(model: Pipeline, batch_size: int) -> float:
    """Processor time of a step: what a longer answer takes more than a shorter one."""
    times = []
    for max_tokens in (DECODE_LEN, 4 * DECODE_LEN):
        start = time.process_time()
        _generate(model, batch_size, max_tokens)
        times.append(time.process_time() - start)
    return (times[1] - times[0]) / (3 * DECODE_LEN)


def _generate(model: Pipeline, batch_size: int, max_tokens: int) -> list[int]:
    """Answers as many prompts at once; the tokens of the first."""
    rng = random.Random(0)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    size = model.spec.vocab_size
    prompts = [tuple(rng.randrange(size // 100, size) for _ in range(PROMPT_LEN)) for _ in range(batch_size)]
    requests = [
        GenerateRequest(request_id=f"{i}", sampling=params, prompt_token_ids=ids) for i, ids in enumerate(prompts)
    ]
    outputs = [empty_output(request.request_id, 1) for request in requests]
    for index, event in model.run(requests):
        outputs[index].fold(event)
    return outputs[0].outputs[0].token_ids


class NullBackend:
    """A model of no cost."""

    vocab_size = 1000
    is_asynchronous = False
    num_stages = 1

    def __init__(self) -> None:
        self.execute = StandIn([7])

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        return (CacheGroup(kind="full", block_bytes=1, block_size=block_size),)

    def allocate_cache(self, num_blocks: object) -> None:
        """Nothing to allocate."""


def measure_engine(batch_size: int, num_waiting: int, rounds: int) -> dict[str, float]:
    """The engine alone, with `batch_size` sequences running and many more waiting."""
    config = EngineConfig(max_model_len=2048, max_num_seqs=batch_size, max_num_batched_tokens=max(512, batch_size))
    engine = Engine(NullBackend(), config)  # type: ignore[arg-type]
    params = SamplingParams(temperature=0.0, max_tokens=1000, ignore_eos=True)
    for i in range(batch_size + num_waiting):
        engine.add(TokenRequest(request_id=f"{i}", prompt_token_ids=tuple(range(8)), sampling=params, seed=0), id)
    while engine.stats().num_running < batch_size or engine.stats().num_output_tokens < 8 * batch_size:
        engine.step()
    times = []
    for _ in range(rounds * 20):
        start = time.process_time()
        engine.step()
        times.append(time.process_time() - start)
    step_us = statistics.median(times) * 1e6
    return {
        "batch": batch_size,
        "waiting": num_waiting,
        "step_us": round(step_us, 1),
        "us_per_sequence": round(step_us / batch_size, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--null", action="store_true", help="measure the engine alone, over no model")
    parser.add_argument("--waiting", type=int, default=2000, help="with --null: sequences that wait")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    if arguments.null:
        rows = [measure_engine(size, arguments.waiting, arguments.rounds) for size in arguments.batch]
    else:
        options = LoadOptions(
            speculative=None,
            num_threads=arguments.threads,
            max_model_len=512,
            max_num_seqs=max(arguments.batch),
            enable_prefix_caching=False,
        )
        with open_model(str(arguments.model), options) as model:
            rows = [measure(model, size, arguments.rounds) for size in arguments.batch]
    for row in rows:
        print(json.dumps(row))
    if arguments.save:
        print(machine.save(arguments.save, {k: str(v) for k, v in vars(arguments).items()}, rows))


if __name__ == "__main__":
    main()
