"""A model on two GPUs against one: logits and greedy tokens, with and without captured graphs. Knows no timing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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


def ranks(device: str) -> Iterator[Record]:
    """`device` is the first of two; weights are a tiny model's, in a file that both processes read."""
    from support.gguf_models import seeds  # which needs a tokenizer's library

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(seeds()["llama"].encode())
        checkpoint = open_checkpoint(path)
        options = BackendOptions(max_model_len=64, device=device, dtype="float32", source=WeightSource(str(path)))
        found = []
        for size in (1, 2):
            shared = replace(options, tensor_parallel_size=size)
            backend = load_backend("torch", checkpoint.spec, checkpoint.weights, shared)
            found.append(written(backend, checkpoint.spec.vocab_size))
            backend.close()
    (logits, tokens), (shared_logits, shared_tokens) = found
    error = float(np.abs(shared_logits - logits).max() / np.abs(logits).max())
    yield {"check": "logits of two ranks", "error": error, "bound": BOUND, "ok": error <= BOUND}
    yield {"check": "greedy tokens of two ranks", "ok": shared_tokens == tokens}


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
