"""Float weights in memory and in results: F32, F16 and BF16 keep their width, unless quantizing is asked for."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from support import huggingface_folder, tiny_models
from support.batches import Driver
from tuili.backend import BackendOptions
from tuili.backends.cpu import _native
from tuili.backends.cpu.backend import load
from tuili.weights.checkpoint import open_checkpoint

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WIDTH = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "q8_0": 34 / 32}
# Of a few layers: 60 MB in float32, so that what weights take stands out of what differs between two runs.
SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "tie_word_embeddings": True}

LOAD = """
import json, sys
from tuili.machine import process_memory
from tuili.runtime.loading.loading import LoadOptions, open_model
options = LoadOptions(
    max_num_seqs=1, max_model_len=64, kv_cache_memory_bytes=1 << 20, num_threads=1, quantization=sys.argv[2] or None
)
with open_model(sys.argv[1], options) as model:
    own, mapped = process_memory()
    is_mapped = sys.argv[1] in open("/proc/self/maps").read()
    print(json.dumps([own, mapped, model.backend.weight_bytes, is_mapped]))
"""


def loaded(path: Path, quantization: str = "") -> tuple[int, int, int]:
    """Own and mapped bytes of a process that has loaded the model, and the backend's count of its weights."""
    command = [sys.executable, "-c", LOAD, str(path.resolve()), quantization]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    own, mapped, weight_bytes, is_mapped = json.loads(done.stdout)
    assert not is_mapped
    return own, mapped, weight_bytes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One model in each width, and one of the same kind without any weights to speak of."""
    paths = {name: tmp_path_factory.mktemp(name) for name in (*DTYPES, "small")}
    huggingface_folder.save(paths["small"], "llama")
    model, tokenizer = huggingface_folder.save(paths["F32"], "llama", **SIZES)
    for name in ("F16", "BF16"):
        copy.deepcopy(model).to(DTYPES[name]).save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    return paths


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_model_takes_what_its_file_takes_and_less_only_when_asked(folders: Mapping[str, Path]) -> None:
    base_own, base_mapped, base_weights = loaded(folders["small"])
    num_parameters = (folders["F32"] / "model.safetensors").stat().st_size / 4
    for name, width in WIDTH.items():
        own, mapped, weight_bytes = loaded(folders["F32"], name) if name == "q8_0" else loaded(folders[name])
        expected = num_parameters * width
        assert weight_bytes == pytest.approx(expected, rel=0.01), name
        assert own - base_own == pytest.approx(expected - base_weights, abs=4 << 20), name
        assert abs(mapped - base_mapped) < 4 << 20, name


def logits(model: PreTrainedModel, path: Path) -> np.ndarray:
    model.save_pretrained(path)
    checkpoint = open_checkpoint(path)
    plain = _native.best_isa().removesuffix("_bf16")  # activations keep their bits beside bfloat16 weights
    backend = load(checkpoint.spec, checkpoint.weights, BackendOptions(max_model_len=64, num_threads=1, isa=plain))
    found = Driver(backend).logits(list(range(1, 24)))
    backend.close()
    return found


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_bit_of_a_weight_counts(tmp_path: Path, name: str) -> None:
    """Half a width gives what its numbers give in float32, and that is not what the numbers before rounding give."""
    model = tiny_models.build("llama", num_hidden_layers=2)
    rounded = copy.deepcopy(model).to(DTYPES[name])
    half = logits(rounded, tmp_path / "half")
    np.testing.assert_array_equal(half, logits(rounded.float(), tmp_path / "widened"))
    assert not np.array_equal(half, logits(model, tmp_path / "whole"))
    other = copy.deepcopy(model).to(DTYPES["BF16" if name == "F16" else "F16"])
    assert not np.array_equal(half, logits(other, tmp_path / "other"))
