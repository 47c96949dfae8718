"""The C++ chain of samplers against its NumPy twin: random chains, steps and the default order spelled out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backend import SamplerKind as Kind
from tuili.backends import load_backend
from tuili.backends.reference import sampling as twin

VOCAB = 1003
SHARES = st.sampled_from([0.02, 0.2, 0.5, 0.9, 0.99])
KEEPS = st.sampled_from([0, 1, 3, 40])
STEP = st.one_of(
    st.just((Kind.PENALTIES,)),
    st.just((Kind.DRY,)),
    st.tuples(st.just(Kind.TOP_N_SIGMA), st.sampled_from([0.5, 1.0, 2.5])),
    st.tuples(st.just(Kind.TOP_K), st.sampled_from([1, 2, 40, 999, 5000])),
    st.tuples(st.sampled_from([Kind.TYPICAL_P, Kind.TOP_P, Kind.MIN_P]), SHARES, KEEPS),
    st.tuples(st.just(Kind.XTC), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.001, 0.01, 0.1]), KEEPS),
    st.tuples(
        st.just(Kind.TEMPERATURE),
        st.sampled_from([0.3, 1.0, 1.7]),
        st.sampled_from([0.0, 0.2, 1.5]),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
)
STATEFUL = st.one_of(
    st.tuples(
        st.sampled_from([Kind.MIROSTAT_1, Kind.MIROSTAT_2]), st.sampled_from([1.0, 5.0]), st.sampled_from([0.1, 1.0])
    ),
    st.tuples(st.just(Kind.ADAPTIVE_P), st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.sampled_from([0.0, 0.9])),
)
CHAIN = st.tuples(st.lists(STEP, max_size=7), st.none() | STATEFUL).map(lambda c: c[0] + ([c[1]] if c[1] else []))


@pytest.fixture(scope="module")
def backend() -> Backend:
    spec = decoder(vocab_size=VOCAB)
    return load_backend("cpu", spec, random_weights(spec, "BF16"), BackendOptions(max_model_len=64))


def row(chain: list[tuple[float, ...]], r: int, **more: Any) -> dict[str, Any]:
    return {
        "temperature": 1.0,
        "chain": chain,
        "seed": 2**63 + r,
        "position": 3 * r,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": -0.2,
        "history": {i: i % 3 for i in range(r, VOCAB, 7)},
        "dry": {i: 0.25 * i for i in range(r, 40)},
        "sampler_state": 2.0 + r,
        **more,
    }


def assert_same(backend: Backend, logits: np.ndarray, rows: list[dict[str, Any]], mask: Any = None) -> None:
    arrays = sampling_arrays(rows)
    found, expected = backend.sample(logits, arrays, mask), twin.choose(logits, arrays, mask)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    np.testing.assert_allclose(found.sampler_state, expected.sampler_state, rtol=1e-4, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(CHAIN.filter(bool), st.integers(0, 2**32), st.sampled_from([0.01, 1.0, 6.0]), st.sampled_from([0.0, 1.0]))
def test_random_chains(
    backend: Backend, chain: list[tuple[float, ...]], seed: int, spread: float, temperature: float
) -> None:
    logits = (np.random.default_rng(seed).standard_normal((4, VOCAB)) * spread).astype(np.float32)
    assert_same(backend, logits, [row(chain, r, temperature=temperature) for r in range(4)])


@settings(max_examples=60, deadline=None)
@given(CHAIN.filter(bool), st.integers(0, 2**32), st.integers(1, 5))
def test_ties(backend: Backend, chain: list[tuple[float, ...]], seed: int, levels: int) -> None:
    """Few distinct logits: everything hangs on the order of equals."""
    logits = np.random.default_rng(seed).integers(0, levels, (3, VOCAB)).astype(np.float32)
    plain = {"history": {}, "dry": {}}
    steps = [step for step in chain if step[0] != Kind.TYPICAL_P]  # equal distances on either side of a mean
    if steps:
        assert_same(backend, logits, [row(steps, r, **plain) for r in range(3)])


def test_masked_rows_and_single_candidates(backend: Backend) -> None:
    generator = np.random.default_rng(3)
    logits = generator.standard_normal((6, VOCAB), np.float32)
    mask = generator.integers(0, 2**32, (6, (VOCAB + 31) // 32), np.uint32)
    mask[1] = 0
    mask[1, 2] = 1 << 5  # one id is left
    chain = [(Kind.TOP_N_SIGMA, 1), (Kind.TEMPERATURE, 0.8, 0.5, 1), (Kind.XTC, 1, 0.01, 0), (Kind.TYPICAL_P, 0.5, 0)]
    for last in ((Kind.TOP_P, 0.9, 2), (Kind.MIROSTAT_1, 5, 0.1), (Kind.MIROSTAT_2, 5, 0.1)):
        assert_same(backend, logits, [row([*chain, last], r) for r in range(6)], mask)
    assert backend.sample(logits, sampling_arrays([row(chain, r) for r in range(6)]), mask).token_ids[1] == 69


EXTREMES = st.sampled_from([-3e38, -1e30, -5.0, 0.0, 4.0, 1e30, 3e38])


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=5), st.none() | STATEFUL, st.lists(EXTREMES, min_size=1, max_size=9))
def test_logits_beyond_floats(
    backend: Backend, steps: list[tuple[float, ...]], last: tuple[float, ...] | None, values: list[float]
) -> None:
    """Huge logits, penalties and temperatures: both choose, and the same, from what is allowed."""
    logits = np.full((2, VOCAB), -np.inf, np.float32)
    logits[:, 50 : 50 + len(values)] = values
    chain = [(Kind.PENALTIES,), (Kind.DRY,), (Kind.TEMPERATURE, 0.01, 0, 1), *steps, *([last] if last else [])]
    history = {"history": {51: 3, 53: 0}, "repetition_penalty": 1e6, "dry": {50: 3e38, 52: 1e30}}
    arrays = sampling_arrays([row(chain, r, **history) for r in range(2)])
    found = backend.sample(logits, arrays, None)
    assert found.token_ids.tolist() == twin.choose(logits, arrays, None).token_ids.tolist()
    assert np.isfinite(logits[[0, 1], found.token_ids]).all()


def test_a_sampler_elsewhere_in_the_chain_rounds_no_penalty_otherwise(backend: Backend) -> None:
    """A greedy choice between logits one rounding apart, with a chain and without."""
    logits = (np.random.default_rng(1).standard_normal((200, VOCAB)) * 0.01 + 9).astype(np.float32)
    more = {"temperature": 0.0, "history": dict.fromkeys(range(VOCAB), 1), "presence_penalty": 0.7}
    short = sampling_arrays([row([], r, **more) for r in range(200)])
    spelled = sampling_arrays([row([(Kind.PENALTIES,), (Kind.TOP_K, 9)], r, **more) for r in range(200)])
    expected = backend.sample(logits, short, None).token_ids.tolist()
    assert backend.sample(logits, spelled, None).token_ids.tolist() == expected
    assert twin.choose(logits, short, None).token_ids.tolist() == expected
    assert twin.choose(logits, spelled, None).token_ids.tolist() == expected


@pytest.mark.parametrize(
    "manner",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 40},
        {"temperature": 1.3, "min_p": 0.05, "top_p": 0.9},
        {"temperature": 0.9, "min_p": 0.01, "top_k": 30, "top_p": 0.8},
    ],
    ids=str,
)
def test_the_default_order_spelled_out(backend: Backend, manner: dict[str, float]) -> None:
    """The fast path and the chain are one definition."""
    logits = (np.random.default_rng(0).standard_normal((80, VOCAB)) * 4).astype(np.float32)
    chain = [
        (Kind.PENALTIES,),
        (Kind.TEMPERATURE, manner["temperature"], 0, 1),
        *([(Kind.MIN_P, manner["min_p"], 0)] if "min_p" in manner else []),
        *([(Kind.TOP_K, manner["top_k"])] if "top_k" in manner else []),
        *([(Kind.TOP_P, manner["top_p"], 0)] if "top_p" in manner else []),
    ]
    spelled = sampling_arrays([row(chain, r) for r in range(80)])
    short = sampling_arrays([row([], r, **manner) for r in range(80)])
    expected = backend.sample(logits, short, None).token_ids.tolist()
    assert backend.sample(logits, spelled, None).token_ids.tolist() == expected


def test_chains_of_a_step(backend: Backend) -> None:
    """Rows with a chain beside rows without; raw logits of some rows only."""
    driver = Driver(backend)
    tokens = np.random.default_rng(5).integers(0, VOCAB, 24).tolist()
    chain = [(Kind.TEMPERATURE, 0.9, 0.3, 1), (Kind.TYPICAL_P, 0.8, 1), (Kind.MIROSTAT_2, 3, 0.5)]
    rows = [row(chain if r % 2 else [], r) for r in range(24)]
    raw = driver.step([Work(driver.text(), tokens, 24)]).logits
    assert raw is not None
    expected = twin.choose(raw, sampling_arrays(rows), None)
    wanted = np.arange(24) % 3 == 0
    for counts in (np.full(24, -1, np.int32), np.arange(24, dtype=np.int32) % 3 - 1):
        works = [Work(driver.text(), tokens, 24)]
        result = driver.step(works, sampling=sampling_arrays(rows), num_logprobs=counts, want_logits=wanted)
        assert result.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(result.sampler_state, expected.sampler_state, rtol=1e-4)
        assert result.logits is not None
        assert np.array_equal(result.logits, raw[wanted])
        assert np.array_equal(result.logits_of(3), raw[3])


def test_what_is_out_of_range_is_refused(backend: Backend) -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    for wrong in ({"chain": [(12,)]}, {"chain": [(-1,)]}, {"dry": {VOCAB: 1.0}}):
        with pytest.raises(ValueError, match=r"chain_kinds|dry_ids"):
            backend.sample(logits, sampling_arrays([{"temperature": 1.0, **wrong}]), None)
