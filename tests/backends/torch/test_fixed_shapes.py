"""The deterministic option on the CPU: one set of bits, whatever else is in the batch and however a text was cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.models.spec import MlpSpec, ModelSpec

TEXT = np.random.default_rng(4).integers(0, 101, 75).tolist()
OPTIONS = BackendOptions(max_model_len=128, device="cpu", deterministic=True)
MLP = MlpSpec(intermediate_size=90)
SPECS = {
    "windows": decoder(layer(), layer(sliding_window=9), layer(MLP, sliding_window=40, logit_softcap=20.0)),
    "layer_norms": decoder(
        layer(MLP, qk_norm="full", sinks=True), layer(MLP), norm="layer", norm_bias=True, position="alibi"
    ),
}


def backend_of(spec: ModelSpec, options: BackendOptions = OPTIONS) -> Backend:
    return load_backend("torch", spec, random_weights(spec), options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_logits_have_one_set_of_bits(name: str, dtype: str) -> None:
    backend = backend_of(SPECS[name], replace(OPTIONS, dtype=dtype))
    expected = Driver(backend).logits(TEXT)
    for chunk in (1, 7, 32, 40):
        assert np.array_equal(Driver(backend).logits(TEXT, chunk=chunk), expected), chunk
    driver = Driver(backend, num_blocks=200)
    works = [Work(driver.text(), TEXT[: 3 * i + 1], 1) for i in range(20)]
    logits = driver.step(works).logits
    assert logits is not None
    assert np.array_equal(logits, expected[[3 * i for i in range(20)]])
    mixed = [Work(work.text, TEXT[work.text.length : work.text.length + 1 + i % 5]) for i, work in enumerate(works)]
    logits = driver.step(mixed).logits
    assert logits is not None
    assert np.array_equal(logits, expected[[work.text.length - 1 for work in mixed]])


def test_blocks_given_back_behind_a_window_are_not_read() -> None:
    spec = decoder(layer(sliding_window=9))
    backend = backend_of(spec)
    driver = Driver(backend)
    text = driver.text()
    expected = Driver(backend_of(spec)).logits(TEXT)[len(TEXT) - 1]
    driver.step([Work(text, TEXT[:-1])])
    assert isinstance(backend, TorchBackend)
    cache = backend._cache.layers[0]
    gone, kept = text.tables[0][:4], text.tables[0][4:]
    assert 0 not in kept
    with torch.inference_mode():
        for plane in (cache.keys, cache.values):
            plane[[0, *gone]] = torch.nan
    text.tables[0][:4] = [-1] * 4
    found = driver.step([Work(text, TEXT[-1:], 1)]).logits
    assert found is not None
    assert np.array_equal(found[0], expected)


def test_without_it_the_shape_of_a_batch_shows() -> None:
    """Guards the test above: were there nothing to prevent, it would prove nothing."""
    backend = backend_of(SPECS["windows"], replace(OPTIONS, deterministic=False))
    assert not np.array_equal(Driver(backend).logits(TEXT, chunk=1), Driver(backend).logits(TEXT))


def test_it_computes_the_same_model() -> None:
    for spec in SPECS.values():
        expected = Driver(backend_of(spec, replace(OPTIONS, deterministic=False))).logits(TEXT)
        np.testing.assert_allclose(Driver(backend_of(spec)).logits(TEXT, chunk=11), expected, rtol=0, atol=2e-5)


class Streams:
    """Texts, and the logits of each alone and whole."""

    def __init__(self, **options: Any) -> None:
        self.backend = backend_of(SPECS["windows"], replace(OPTIONS, **options))
        self.texts = [TEXT[i:] + TEXT[:i] for i in (0, 11, 40)]
        self.expected = [Driver(self.backend).logits(text) for text in self.texts]


@pytest.fixture(
    scope="module", params=[{}, {"dtype": "bfloat16"}, {"kv_cache_dtype": "int8"}], ids=["float32", "bfloat16", "int8"]
)
def streams(request: pytest.FixtureRequest) -> Streams:
    return Streams(**request.param)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.integers(0, 33), min_size=4, max_size=4), min_size=1, max_size=6))
def test_no_schedule_shows(streams: Streams, steps: list[list[int]]) -> None:
    """Texts, two of them alike, that run on beside each other by as many tokens at a time as chance has it."""
    driver, which = Driver(streams.backend), (0, 1, 2, 0)
    texts = [driver.text() for _ in which]
    for counts in steps:
        works, places = [], []
        for text, i, count in zip(texts, which, counts, strict=True):
            if part := streams.texts[i][text.length : text.length + count]:
                works.append(Work(text, part))
                places.append((i, text.length + len(part) - 1))
        if works:
            logits = driver.step(works).logits
            assert logits is not None
            for found, (i, position) in zip(logits, places, strict=True):
                assert np.array_equal(found, streams.expected[i][position])
