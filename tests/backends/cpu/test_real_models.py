"""SmolLM2 and Gemma 3 from their files: close to float32 on the same weights, and one set of bits in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.batches import Driver, Work
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.weights.checkpoint import Checkpoint, open_checkpoint

NUM_TOKENS, NUM_COMPARED = 192, 128
OPTIONS = BackendOptions(max_model_len=256)
MAX_MEAN_KL = 0.006  # measured: 0.0034 (SmolLM2), 0.0022 (Gemma 3)


def wikitext_ids(checkpoint: Checkpoint, wikitext: str) -> list[int]:
    return list(tokenizer_from_gguf(checkpoint.config).encode(wikitext[:4000]))[:NUM_TOKENS]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def mean_kl(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean over rows of KL(expected || found)."""
    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def check_divergence(path: Path, wikitext: str) -> None:
    checkpoint = open_checkpoint(path)
    ids = wikitext_ids(checkpoint, wikitext)[:NUM_COMPARED]
    logits = {
        name: Driver(load_backend(name, checkpoint.spec, checkpoint.weights, OPTIONS)).logits(ids)
        for name in ("cpu", "reference")
    }
    assert mean_kl(logits["reference"], logits["cpu"]) <= MAX_MEAN_KL
    agreement = (logits["reference"].argmax(-1) == logits["cpu"].argmax(-1)).mean()
    assert agreement >= 0.9


def test_smollm2_stays_close_to_float32(smollm2_gguf: Path, wikitext: str) -> None:
    check_divergence(smollm2_gguf, wikitext)


def test_gemma3_stays_close_to_float32(gemma3_gguf: Path, wikitext: str) -> None:
    check_divergence(gemma3_gguf, wikitext)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_smollm2_has_one_set_of_bits(smollm2_gguf: Path, wikitext: str, num_threads: int) -> None:
    """Prefill at once, in chunks of 64, token by token, and beside 31 others."""
    checkpoint = open_checkpoint(smollm2_gguf)
    ids = wikitext_ids(checkpoint, wikitext)
    options = BackendOptions(max_model_len=256, num_threads=num_threads)
    backend = load_backend("cpu", checkpoint.spec, checkpoint.weights, options)
    expected = Driver(backend).logits(ids)
    assert np.array_equal(Driver(backend).logits(ids, chunk=64), expected)
    driver = Driver(backend, num_blocks=200)
    works = [Work(driver.text(), ids[: 5 * i + 3], 1) for i in range(32)]
    logits = driver.step(works).logits
    assert logits is not None
    assert np.array_equal(logits, expected[[5 * i + 2 for i in range(32)]])
    logits = driver.step([Work(work.text, [ids[work.text.length]]) for work in works]).logits
    assert logits is not None
    assert np.array_equal(logits, expected[[5 * i + 3 for i in range(32)]])
