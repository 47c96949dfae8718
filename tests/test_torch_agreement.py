"""benchmarks/torch_agreement on a small model: what it compares, and that equals are told as equals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.gguf_models import seeds
from tuili.weights.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]


def test_backends_are_compared_with_those_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.torch_agreement import compared, measure

    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    rng = np.random.default_rng(0)
    checkpoint = open_checkpoint(path)
    chunks = rng.integers(3, checkpoint.spec.vocab_size, (2, 24)).tolist()
    reference, cpu, exact, half = measure(checkpoint, chunks, "cpu")
    assert reference.keys() == {"backend", "perplexity"}
    assert set(cpu) - set(reference) == {f"{k} reference" for k in compared(*np.ones((2, 1, 3), np.float32))}
    assert exact["backend"] == "torch float32"
    assert exact["same_top_percent reference"] == 100
    assert exact["divergence reference"] < 1e-9
    assert exact["perplexity"] == reference["perplexity"]
    assert 1e-9 < half["divergence reference"] < 0.1
    assert half["same_top_percent cpu"] > 50
