"""The torch backend on a device against the NumPy reference: logits per dtype, packed weights, small caches, texts.

Bounds are docs/torch.md's, as shares of the largest logit. Models are small and random, from a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from benchmarks.gpu import on_device, several
from benchmarks.gpu.memory import MemoryChecks
from benchmarks.gpu.records import Record, Recorder, stage_arguments

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions, Batch, StepHandle
from tuili.backends import load_backend
from tuili.backends.torch.graphs import CudaCapture, repeat
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.models.spec import MlpSpec
from tuili.quant.format import Tensor
from tuili.types import SamplingParams, TokenDelta, TokenRequest

DTYPE_BOUNDS = {"float32": 1e-4, "float16": 0.015, "bfloat16": 0.12}
CACHE_BOUNDS = {"bfloat16": 0.02, "int8": 0.02, "fp8": 0.15}
PACKED_BOUND = 2e-3  # float32 activations; products may run on TF32 units
PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
NEAR_TIE = 1e-3
CONFIG = EngineConfig(
    max_model_len=512, max_num_seqs=8, max_num_batched_tokens=48, block_size=16, kv_cache_dtype="auto",
    kv_cache_memory_bytes=64 << 20, enable_prefix_caching=False,
)  # fmt: skip
_LENGTH = 150

Weights = Mapping[str, Tensor]


class Checks:
    """A small model whose matrices have rows of whole groups of 256, its logits by the reference, and a device."""

    def __init__(self, device: str, is_smoke: bool) -> None:
        self.is_smoke = is_smoke
        wide = layer(MlpSpec(intermediate_size=256), num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125)
        windowed = replace(wide, mixer=replace(wide.mixer, sliding_window=40))
        self.spec = decoder(*[wide, windowed][: 1 if is_smoke else 2] * 2, hidden_size=256, tie_word_embeddings=True)
        self.options = BackendOptions(max_model_len=512, device=device, dtype="float32")
        self.weights = random_weights(self.spec)
        self.text = np.random.default_rng(1).integers(0, self.spec.vocab_size, 20 if is_smoke else _LENGTH).tolist()
        self.expected = self.reference(self.weights)

    def reference(self, weights: Weights) -> np.ndarray:
        options = BackendOptions(max_model_len=512)
        return Driver(load_backend("reference", self.spec, weights, options)).logits(self.text)

    def backend(self, weights: Weights | None = None, **changes: Any) -> Backend:
        options = replace(self.options, **changes)
        return load_backend("torch", self.spec, self.weights if weights is None else weights, options)

    def compared(self, name: str, backend: Backend, expected: np.ndarray, bound: float, chunk: int = 0) -> Record:
        found = Driver(backend).logits(self.text, chunk=chunk or None)
        backend.close()
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        return {"check": name, "error": error, "bound": bound, "ok": bool(error <= bound)}

    def dtypes(self) -> Iterator[Record]:
        for dtype, bound in list(DTYPE_BOUNDS.items())[: 1 if self.is_smoke else 3]:
            for chunk in (0, 37):
                name = f"logits in {dtype}, {f'chunks of {chunk}' if chunk else 'whole prompt'}"
                yield self.compared(name, self.backend(dtype=dtype), self.expected, bound, chunk)

    def caches(self) -> Iterator[Record]:
        for cache, bound in list(CACHE_BOUNDS.items())[: 1 if self.is_smoke else 3]:
            yield self.compared(f"{cache} cache", self.backend(kv_cache_dtype=cache), self.expected, bound, 37)

    def packed(self) -> Iterator[Record]:
        for name in PACKED[:1] if self.is_smoke else PACKED:
            weights = random_weights(self.spec, name)
            expected = self.reference(weights)
            yield self.compared(f"{name} weights", self.backend(weights), expected, PACKED_BOUND)

    def company(self) -> Iterator[Record]:
        """Deterministic mode: bits do not depend on the batch, nor on how the prompt was cut."""
        for dtype in ("float32",) if self.is_smoke else ("bfloat16", "float32"):
            driver = Driver(self.backend(deterministic=True, dtype=dtype))
            alone = driver.logits(self.text)
            works = [Work(driver.text(), self.text[i:], len(self.text) - i) for i in (0, 3, 9)]
            result = driver.step(works)
            assert result.logits is not None
            for name, found in (
                ("in a batch", result.logits[: len(self.text)]),
                ("in chunks", driver.logits(self.text, chunk=11)),
            ):
                error = float(np.abs(found - alone).max())
                yield {"check": f"deterministic {dtype} {name}", "error": error, "bound": 0.0, "ok": error == 0}
            driver.backend.close()

    def orders(self) -> Iterator[Record]:
        """Graphs, and steps that are built while another runs, change no token in deterministic mode; none waits."""
        number, length = (3, 4) if self.is_smoke else (20, 32)
        rng = np.random.default_rng(3)
        prompts = [rng.integers(0, self.spec.vocab_size, rng.integers(3, 60)).tolist() for _ in range(number)]
        is_cuda = self.options.device != "cpu"
        expected: list[list[int]] = []
        manners = ((False, False), (False, True), (True, False), (True, True))
        for is_ahead, has_graphs in manners[:: 3 if self.is_smoke else 1]:
            backend: Any = self.backend(deterministic=True, dtype="float32" if self.is_smoke else "bfloat16")
            backend.is_asynchronous = is_ahead
            capture = CudaCapture(torch.device(backend.device)) if is_cuda else repeat
            backend.graphs = backend.captured_by(capture) if has_graphs else None
            engine = Engine(backend, CONFIG)  # one for both rounds: a new one has a new cache, and so new graphs
            found = sampled(engine, prompts, length)
            expected = expected or found
            graphs = backend.graphs
            name = f"tokens {'with' if has_graphs else 'without'} graphs, steps {'ahead' if is_ahead else 'in turn'}"
            is_captured = not has_graphs or len(graphs) > 0
            yield {"check": name, "ok": found == expected and is_captured, "graphs": len(graphs) if graphs else 0}
            if is_cuda:
                with refused_waits(backend):  # kernels are compiled, graphs captured
                    again = sampled(engine, prompts, length)
                yield {"check": f"{name}, none waits", "ok": again == expected}
            backend.close()

    def greedy_texts(self) -> Iterator[Record]:
        """In float32, the reference's tokens; where two logits were nearer than NEAR_TIE, either goes."""
        number, length = (2, 4) if self.is_smoke else (20, 32)
        rng = np.random.default_rng(2)
        prompts = [rng.integers(0, self.spec.vocab_size, rng.integers(3, 60)).tolist() for _ in range(number)]
        expected = greedy(
            load_backend("reference", self.spec, self.weights, BackendOptions(max_model_len=512)), prompts, length
        )
        for dtype in ("float32",) if self.is_smoke else ("float32", "bfloat16"):
            found = greedy(self.backend(dtype=dtype), prompts, length)
            pairs = list(zip(found, expected, strict=True))
            same = sum(a.tokens == b.tokens for a, b in pairs)
            record = {"check": f"greedy texts in {dtype}", "same": same, "of": number}
            if dtype == "float32":
                record |= {
                    "ok": all(
                        first_difference(a, b) > length or b.is_near_tie(first_difference(a, b)) for a, b in pairs
                    )
                }
            yield record


def sampled(engine: Engine, prompts: list[list[int]], length: int) -> list[list[int]]:
    """Tokens of all as one batch, that end at different times; every other one is drawn, some of these by mirostat, and
    some say logprobs.
    """
    answers = [Answer() for _ in prompts]
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        sampling = SamplingParams(
            temperature=0.9 * (i % 2), top_p=0.9, max_tokens=length + i, stop_token_ids=[1, 2, 3], ignore_eos=True,
            logprobs=2 if i % 3 == 0 else None, mirostat=2 * (i % 4 == 1),
        )  # fmt: skip
        engine.add(
            TokenRequest(request_id=str(i), prompt_token_ids=tuple(prompt), sampling=sampling, seed=i), answer.take
        )
    while engine.step():
        pass
    return [answer.tokens for answer in answers]


@contextmanager
def refused_waits(backend: Any) -> Iterator[None]:
    """A step that waits for the device while it is handed over is an error."""
    execute = backend.execute

    def checked(batch: Batch) -> StepHandle:
        torch.cuda.set_sync_debug_mode("error")
        try:
            handle: StepHandle = execute(batch)
            return handle
        finally:
            torch.cuda.set_sync_debug_mode("default")

    backend.execute = checked
    yield
    backend.execute = execute


class Answer:
    """Tokens, and how far the second best was behind at each."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.margins: list[float] = []

    def take(self, delta: TokenDelta) -> None:
        if delta.error is not None:
            raise delta.error
        self.tokens.extend(delta.token_ids)
        for entry in delta.logprobs or ():
            best = sorted((item.logprob for item in entry.values()), reverse=True)
            self.margins.append(best[0] - best[1])

    def is_near_tie(self, place: int) -> bool:
        return self.margins[place] < NEAR_TIE


def first_difference(found: Answer, expected: Answer) -> int:
    """Its place; beyond all places where there is none."""
    pairs = zip(found.tokens, expected.tokens, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(expected.tokens) + 1)


def greedy(backend: Backend, prompts: list[list[int]], length: int) -> list[Answer]:
    """All as one batch, through the engine, in steps that mix prompts and decodes."""
    engine, answers = Engine(backend, CONFIG), [Answer() for _ in prompts]
    sampling = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, logprobs=2)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        request = TokenRequest(request_id=str(i), prompt_token_ids=tuple(prompt), sampling=sampling, seed=0)
        engine.add(request, answer.take)
    while engine.step():
        pass
    backend.close()
    return answers


def main() -> int:
    arguments = stage_arguments(__doc__).parse_args()
    recorder = Recorder(arguments.records)
    device = torch.device(arguments.device)
    run(recorder, device, arguments.smoke)
    return 1 if recorder.num_failures else 0


def run(recorder: Recorder, device: torch.device, is_smoke: bool) -> None:
    """Last what the kernels' own checks tell of, too: compiling it takes longest, and time may run out."""
    checks, memory = Checks(str(device), is_smoke), MemoryChecks(str(device), is_smoke)
    for measure in (checks.dtypes, checks.greedy_texts, checks.orders):
        recorder.attempt(measure.__name__, measure)
    if device.type == "cuda":
        recorder.attempt("waits", lambda: on_device.waits(str(device)))
        recorder.attempt("failure", on_device.failure)
    for measure in (memory.failing, memory.swap, memory.split):
        recorder.attempt(measure.__name__, measure)
    recorder.attempt("draws", lambda: on_device.draws(str(device), is_smoke))
    if device.type == "cuda":
        for measure in (memory.sizing, memory.lack):
            recorder.attempt(measure.__name__, measure)
        first = device.index or 0
        recorder.attempt("ranks", lambda: several.ranks(f"cuda:{first}", torch.cuda.device_count() - first))
    for measure in (checks.company, checks.packed, checks.caches):
        recorder.attempt(measure.__name__, measure)


if __name__ == "__main__":
    raise SystemExit(main())
