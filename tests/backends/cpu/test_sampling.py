"""The C++ sampler against its NumPy twin on given logits, and logprobs of a step against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.backends.reference import sampling as twin

VOCAB = 1003


@pytest.fixture(scope="module")
def backend() -> Backend:
    spec = decoder(vocab_size=VOCAB)
    return load_backend("cpu", spec, random_weights(spec, "BF16"), BackendOptions(max_model_len=64))


def check(backend: Backend, logits: np.ndarray, rows: list[dict[str, Any]], mask: np.ndarray | None = None) -> None:
    arrays = sampling_arrays(rows)
    before = logits.copy()
    found, expected = backend.sample(logits, arrays, mask), twin.choose(logits, arrays, mask)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    np.testing.assert_allclose(found.sampler_state, expected.sampler_state, rtol=1e-5)
    assert np.array_equal(logits, before)


PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0, "top_k": 1},
    {"temperature": 1.5, "top_k": 40},
    {"temperature": 1.0, "top_k": 2 * VOCAB},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.999},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.3, "min_p": 1.0},
    {"temperature": 0.8, "min_p": 0.01, "top_k": 50, "top_p": 0.8},
    {"temperature": 1.0, "repetition_penalty": 1.3, "history": {3: 0, 5: 2, 900: 1}},
    {"presence_penalty": 1.5, "frequency_penalty": 0.7, "history": {i: i % 4 for i in range(0, VOCAB, 3)}},
    {"temperature": 1.0, "bias": {7: 5.0, 8: -np.inf, 7 + 1: 2.0}},
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_choices_equal_the_definition(backend: Backend, params: dict[str, Any], spread: float) -> None:
    generator = np.random.default_rng(0)
    logits = (generator.standard_normal((60, VOCAB)) * spread).astype(np.float32)
    rows = [params | {"seed": 2**63 + r, "position": r, "sample_index": r % 3} for r in range(60)]
    check(backend, logits, rows)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_k=st.integers(0, 30),
    top_p=st.sampled_from([0.2, 0.7, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    levels=st.integers(1, 6),
)
def test_ties(
    backend: Backend, seed: int, temperature: float, top_k: int, top_p: float, min_p: float, levels: int
) -> None:
    """Few distinct logits: everything hangs on the order of equals."""
    logits = np.random.default_rng(seed).integers(0, levels, (4, VOCAB)).astype(np.float32)
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    check(backend, logits, [params | {"position": r} for r in range(4)])


def test_masks(backend: Backend) -> None:
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((20, VOCAB), np.float32)
    mask = generator.integers(0, 2**32, (20, (VOCAB + 31) // 32), np.uint32)
    mask[3], mask[4], mask[5, :-1] = 0, 0xFFFFFFFF, 0
    for temperature in (0.0, 1.0):
        check(backend, logits, [{"temperature": temperature, "seed": r} for r in range(20)], mask)


def test_frequencies_follow_the_weights(backend: Backend) -> None:
    """20000 draws over 4 ids: within 4 standard deviations."""
    logits = np.full((20_000, VOCAB), -np.inf, np.float32)
    weights = np.array([0.5, 0.25, 0.15, 0.1])
    logits[:, [2, 500, 501, 1002]] = np.log(weights)
    rows = [{"temperature": 1.0, "seed": 5, "position": r} for r in range(len(logits))]
    ids = backend.sample(logits, sampling_arrays(rows), None).token_ids
    counts = np.array([(ids == i).sum() for i in (2, 500, 501, 1002)])
    assert counts.sum() == len(logits)
    assert (np.abs(counts - weights * len(logits)) < 4 * np.sqrt(len(logits) * weights * (1 - weights))).all()


def test_rows_that_are_not_numbers_choose_something_valid(backend: Backend) -> None:
    for value in (np.nan, np.inf, -np.inf):
        logits = np.full((4, VOCAB), value, np.float32)
        rows = [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}]
        ids = backend.sample(logits, sampling_arrays(rows), None).token_ids
        assert ((ids >= 0) & (ids < VOCAB)).all()


def test_logprobs_of_a_step(backend: Backend) -> None:
    driver = Driver(backend)
    tokens = list(range(10, 40))
    rows: list[dict[str, Any]] = [{"temperature": 1.0, "seed": r, "position": r, "top_k": 20} for r in range(30)]
    counts = np.array([r % 7 - 1 for r in range(29)] + [VOCAB], np.int32)
    targets = np.where(np.arange(30) % 3 == 0, np.arange(30) * 11, -1).astype(np.int32)
    result = driver.step(
        [Work(driver.text(), tokens, 30)], sampling=sampling_arrays(rows), num_logprobs=counts, targets=targets
    )
    assert result.logits is not None
    chosen = twin.choose(result.logits, sampling_arrays(rows), None).token_ids
    assert result.token_ids.tolist() == np.where(targets >= 0, targets, chosen).tolist()
    for r, k in enumerate(counts.tolist()):
        if k < 0:
            assert np.isnan(result.logprobs[r])
            assert result.ranks[r] == 0
        else:
            score = twin.score(result.logits[r], int(result.token_ids[r]), k)
            assert result.logprobs[r] == pytest.approx(score.logprob, abs=2e-6)
            assert result.ranks[r] == score.rank
            assert result.top_ids[r, :k].tolist() == score.top_ids.tolist()
            np.testing.assert_allclose(result.top_logprobs[r, :k], score.top_logprobs, atol=2e-6)
        assert (result.top_ids[r, max(k, 0) :] == -1).all()
        assert np.isnan(result.top_logprobs[r, max(k, 0) :]).all()


def test_masks_of_a_step(backend: Backend) -> None:
    """Applied before anything is stored, for greedy and drawn rows; logits handed out and logprobs stay raw."""
    driver, generator = Driver(backend), np.random.default_rng(6)
    tokens = generator.integers(0, VOCAB, 30).tolist()
    mask = generator.integers(0, 2**32, (30, (VOCAB + 31) // 32), np.uint32)
    mask[3], mask[4], mask[5, 1:] = 0, 0xFFFFFFFF, 0
    rows: list[dict[str, Any]] = [
        {"temperature": r % 3 / 2, "top_k": r % 5, "seed": r, "bias": {r: 2.0} if r % 4 == 1 else {}} for r in range(30)
    ]
    raw = driver.step([Work(driver.text(), tokens, 30)]).logits
    assert raw is not None
    expected = twin.choose(raw, sampling_arrays(rows), mask).token_ids.tolist()
    for want_logits in (False, True):
        works = [Work(driver.text(), tokens, 30)]
        result = driver.step(works, sampling=sampling_arrays(rows), allow_mask=mask, want_logits=want_logits)
        assert [i for r, i in enumerate(result.token_ids.tolist()) if r != 3] == expected[:3] + expected[4:]
        assert result.token_ids[3] == 0
        assert not want_logits or np.array_equal(result.logits, raw)


def test_greedy_without_logits_is_greedy_with_them(backend: Backend) -> None:
    """The fused choice never sees a whole row; more rows than one tile of the head."""
    driver = Driver(backend)
    tokens = np.random.default_rng(4).integers(0, VOCAB, 60).tolist()
    fused = driver.step([Work(driver.text(), tokens, 60) for _ in range(3)], want_logits=False).token_ids
    result = driver.step([Work(driver.text(), tokens, 60)])
    assert result.logits is not None
    assert fused.reshape(3, 60).tolist() == [result.logits.argmax(-1).tolist()] * 3
    assert result.token_ids.tolist() == fused[:60].tolist()
