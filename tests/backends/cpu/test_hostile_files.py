"""The kernels on files changed by strangers: what the readers let through must be safe to compute with.

Under scripts/sanitize.sh the same mutants run on kernels that report every access out of bounds.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.batches import Driver
from support.gguf_family_seeds import family_seeds
from support.gguf_models import seeds
from support.gguf_mutants import mutants
from support.hostile_child import MESSAGES, outcome, read
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.errors import TuiliError
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.types import Done, Failed, GenerateRequest, SamplingParams

NUM_LOADED = int(os.environ.get("TUILI_HOSTILE_FILES", "40"))
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.no_cover]


def readable(path: Path, seed: int) -> Iterator[str]:
    """Writes one mutant after the other that the readers accept to `path`; yields what was done to it."""
    for done, content in mutants(seeds() | family_seeds(), seed, 100_000):
        path.write_bytes(content)
        if "settled" in done and outcome(path, read) == "read":
            yield done


def test_mutants_that_are_read_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    answered = 0
    for done in itertools.islice(readable(path, 3), NUM_LOADED):
        try:
            options = LoadOptions(num_threads=2, max_num_seqs=2, max_num_batched_tokens=32, block_size=16)
            with open_model(str(path), options) as pipeline:
                sampling = SamplingParams(max_tokens=4, temperature=0.7, top_k=5, seed=1, logprobs=2)
                prompt = {"messages": MESSAGES} if pipeline.has_chat_template else {"prompt": "hello"}
                *_, last = pipeline.stream(GenerateRequest(request_id="1", sampling=sampling, **prompt))
        except TuiliError:
            continue
        assert isinstance(last, Done | Failed), done
        answered += 1
    assert answered > NUM_LOADED // 2


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_any_bytes_are_weights(name: str) -> None:
    """Scales of infinity and NaN, codes no quantizer writes: a step ends, with or without a token."""
    spec = decoder(hidden_size=256, vocab_size=64)
    generator = np.random.default_rng(0)
    for content in (None, 0xFF, 0x7C):
        weights = dict(random_weights(spec, "F32"))
        for leaf, tensor in weights.items():
            fmt = BY_NAME[name]
            if len(tensor.shape) == 1 or tensor.shape[1] % fmt.group_size:
                continue
            size = (tensor.shape[0], fmt.row_bytes(tensor.shape[1]))
            data = generator.integers(0, 256, size, np.uint8) if content is None else np.full(size, content, np.uint8)
            weights[leaf] = Tensor(fmt, tensor.shape, data)
        driver = Driver(load_backend("cpu", spec, weights, BackendOptions(max_model_len=64, num_threads=2)))
        assert driver.logits([3, 1, 2]).shape == (3, spec.vocab_size)


def lies(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor with a shape or bytes that do not belong together."""
    rows, cols = tensor.shape
    yield "short", Tensor(tensor.format, tensor.shape, tensor.data[:-1])
    yield "narrow", Tensor(tensor.format, tensor.shape, np.ascontiguousarray(tensor.data[:, :-1]))
    yield "empty", Tensor(tensor.format, tensor.shape, tensor.data[:0])
    yield "tall", Tensor(tensor.format, (rows + 32, cols), tensor.data)
    yield "wide", Tensor(tensor.format, (rows, cols + 32), tensor.data)
    yield "transposed", Tensor(tensor.format, (cols * 2, rows // 2), tensor.data)
    yield "wrapped", Tensor(tensor.format, (2**32 + rows, cols), tensor.data)
    yield "another format", Tensor(BY_NAME["Q8_0"], tensor.shape, tensor.data)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.0.q_proj.weight", "layers.1.down_proj.weight"])
def test_tensors_that_lie_about_their_shape_are_refused_by_the_kernels_too(name: str) -> None:
    spec = decoder()
    weights = random_weights(spec, "Q4_0")
    for what, lie in lies(weights[name]):
        try:
            load_backend("cpu", spec, weights | {name: lie}, BackendOptions(max_model_len=64, num_threads=1)).close()
        except TuiliError:
            continue
        pytest.fail(f"{what} was accepted")
