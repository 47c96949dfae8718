"""benchmarks/cpu/padded_llama on a small model: what K-quants are measured on computes what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.batches import Driver
from support.gguf_models import seeds
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.weights.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
TEXT = [5, 17, 3, 88, 41, 2, 9, 60, 12, 33]


def test_zeros_change_no_logit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.cpu.padded_llama import write_padded

    narrow, wide = tmp_path / "narrow.gguf", tmp_path / "wide.gguf"
    narrow.write_bytes(seeds()["llama"].encode())
    write_padded(narrow, wide)
    logits = []
    for path in (narrow, wide):
        checkpoint = open_checkpoint(path)
        logits.append(
            Driver(
                load_backend("reference", checkpoint.spec, checkpoint.weights, BackendOptions(max_model_len=32))
            ).logits(TEXT)
        )
    rows = {t.shape[-1] for n, t in checkpoint.weights.items() if len(t.shape) == 2}
    assert rows == {256}
    assert np.ptp(logits[0]) > 1
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5)
