"""What only a device shows: its draws beside the reference's, what makes a step wait for it, and how it fails."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from benchmarks.gpu.records import Record

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, random_weights
from support.sampling_rows import random_row
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.reference.sampling import choose

_LEFT_OPEN = 0.002  # rows that a sum in another order may decide otherwise
_FAIL = """
import torch
from tuili.backends.torch.devices import current
from tuili.errors import DeviceFailureError
device = torch.device("cuda", 0)
try:
    with current(device):
        torch.zeros(1, device=device)[torch.tensor([5], device=device)]
        torch.cuda.synchronize()
except DeviceFailureError as error:
    print(error)
"""


def draws(device: str, is_smoke: bool) -> Iterator[Record]:
    """Samplers in any order, with and without a state, for small and large vocabularies."""
    spec = decoder()
    backend = load_backend("torch", spec, random_weights(spec), BackendOptions(max_model_len=64, device=device))
    for vocab_size in (101,) if is_smoke else (101, 5000, 151_936):
        number = 20 if is_smoke or vocab_size > 10_000 else 500
        chance, rng = random.Random(vocab_size), np.random.default_rng(vocab_size)
        rows = sampling_arrays([random_row(chance, vocab_size) for _ in range(number)])
        logits = rng.normal(0, 3, (number, vocab_size)).astype(np.float32)
        found, expected = backend.sample(logits, rows, None), choose(logits, rows, None)
        wrong = int((found.token_ids != expected.token_ids).sum())
        yield {
            "check": f"draws from {vocab_size}", "wrong": wrong, "of": number,
            "ok": wrong <= 1 + number * _LEFT_OPEN,
        }  # fmt: skip
    backend.close()


def waits(device: str) -> Iterator[Record]:
    """Steps that draw in many ways, in which torch warns of every operation that waits for the device."""
    spec = decoder()
    backend = load_backend("torch", spec, random_weights(spec), BackendOptions(max_model_len=64, device=device))
    driver, chance = Driver(backend), random.Random(1)
    texts = [driver.text() for _ in range(8)]
    driver.step([Work(text, [1, 2, 3]) for text in texts])
    rows = sampling_arrays([random_row(chance, spec.vocab_size) for _ in texts])
    changes = {"sampling": rows, "want_logits": None, "num_logprobs": np.full(len(texts), 2, np.int32)}
    batches = [driver.batch([Work(text, [0], carry=True) for text in texts], **changes) for _ in range(3)]
    for batch in batches[:2]:  # kernels are compiled, and graphs captured, the first times
        backend.execute(batch).result()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            handle = backend.execute(batches[2])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    handle.result()
    where = waits_told(told)
    yield {"check": "a step waits for nothing", "waits": where, "ok": not where}
    backend.close()


def waits_told(warned: list[warnings.WarningMessage]) -> list[str]:
    """Where torch warned of one. The first time it also warns that it does not see them all."""
    found = (w for w in warned if "called a synchronizing" in str(w.message))
    return sorted({f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in found})


def failure() -> Iterator[Record]:
    """In a process of its own, of which nothing can be computed any more."""
    done = subprocess.run([sys.executable, "-c", _FAIL], capture_output=True, text=True, timeout=60, check=False)
    told = done.stdout.strip()[:200]
    yield {"check": "a failed device is recognized", "said": told, "ok": "cuda:0 failed" in told}
