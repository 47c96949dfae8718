"""What a finished wheel must do on a machine that has nothing else: no torch, no compiler, no network."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from support.batches import Driver
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.cpu import _native


def test_the_command_line_works() -> None:
    command = [sys.executable, "-m", "tuili.cli.main", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)


@pytest.mark.parametrize(
    "isa", [name for name in ("avx512_bf16", "avx512", "avx_vnni", "avx2", "scalar") if _native.has_isa(name)]
)
def test_every_instruction_set_this_processor_has_computes_the_same_tokens(isa: str) -> None:
    spec = decoder()
    weights = random_weights(spec, "Q8_0")
    token_ids = np.random.default_rng(0).integers(0, spec.vocab_size, 70).tolist()
    options = BackendOptions(max_model_len=128, isa=isa)
    ours = Driver(load_backend("cpu", spec, weights, options)).logits(token_ids)
    expected = Driver(load_backend("reference", spec, weights, BackendOptions(max_model_len=128))).logits(token_ids)
    assert float(np.abs(ours - expected).max()) < 0.3
