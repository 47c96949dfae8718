"""A model on several GPUs against one: logits and greedy tokens, with and without captured graphs. Knows no timing."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmarks.gpu.records import Record

from support.batches import Driver, Work
from tuili.backend import Backend, BackendOptions, WeightSource
from tuili.backends import load_backend
from tuili.weights.checkpoint import open_checkpoint

BOUND = 1e-4  # of the largest logit, as docs/torch.md tells for float32
LENGTH = 24
WAYS: Mapping[str, Mapping[str, int]] = {
    "two ranks": {"tensor_parallel_size": 2},
    "two stages": {"pipeline_parallel_size": 2},
    "two stages of two ranks": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
}


def ranks(device: str, num_devices: int) -> Iterator[Record]:
    """`device` is the first of so many; weights are a tiny model's, in a file that all processes read.

    Each way to use several that there are devices for is tried, the others are named.
    """
    ways = {name: sizes for name, sizes in WAYS.items() if math.prod(sizes.values()) <= num_devices}
    for name in WAYS.keys() - ways.keys():
        needed = math.prod(WAYS[name].values())
        yield {"name": name, "skipped": f"needs {needed} GPUs, there are {num_devices}"}
    if ways:
        yield from compared(device, ways)


def compared(device: str, ways: Mapping[str, Mapping[str, int]]) -> Iterator[Record]:
    """Each with one device alone."""
    from support.gguf_models import seeds  # which needs a tokenizer's library

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(seeds()["llama"].encode())
        checkpoint = open_checkpoint(path)
        options = BackendOptions(max_model_len=64, device=device, dtype="float32", source=WeightSource(str(path)))

        def found(**sizes: int) -> tuple[np.ndarray, list[int]]:
            shared = replace(options, **sizes)
            backend = load_backend("torch", checkpoint.spec, checkpoint.weights, shared)
            try:
                return written(backend, checkpoint.spec.vocab_size)
            finally:
                backend.close()

        logits, tokens = found()
        for name, sizes in ways.items():
            shared_logits, shared_tokens = found(**sizes)
            error = float(np.abs(shared_logits - logits).max() / np.abs(logits).max())
            yield {"check": f"logits of {name}", "error": error, "bound": BOUND, "ok": error <= BOUND}
            yield {"check": f"greedy tokens of {name}", "ok": shared_tokens == tokens}


def written(backend: Backend, vocab_size: int) -> tuple[np.ndarray, list[int]]:
    """Logits of a text, and the tokens that follow it."""
    text = np.random.default_rng(5).integers(0, vocab_size, 30).tolist()
    driver = Driver(backend)
    logits = driver.logits(text, chunk=17)
    work = Work(driver.text(), text)
    tokens = driver.step([work], want_logits=False).token_ids.tolist()
    while len(tokens) < LENGTH:  # one token a step, as graphs have it
        tokens += driver.step([Work(work.text, tokens[-1:])], want_logits=False).token_ids.tolist()
    return logits, tokens
