"""Each sampler against its definition over lists of numbers, and drawn frequencies against the distributions."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.batches import sampling_arrays
from tuili.backend import SamplerKind as Kind
from tuili.backends.reference.sampler_chain import Candidates, run_chain
from tuili.backends.reference.sampling import choose, penalize, uniform

Logits = dict[int, float]  # of the ids that are left
LISTS = st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=24, unique=True)
MASSES = st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95])
KEEPS = st.sampled_from([0, 1, 3, 10])


def probabilities(logits: Logits) -> dict[int, float]:
    top = max(logits.values())
    total = math.fsum(math.exp(x - top) for x in logits.values())
    return {i: math.exp(x - top) / total for i, x in logits.items()}


def by_logit(logits: Logits) -> list[int]:
    return sorted(logits, key=lambda i: (-logits[i], i))


def kept(logits: list[float], chain: list[tuple[float, ...]], **row: Any) -> set[int]:
    """The ids that a chain leaves."""
    arrays = sampling_arrays([{"temperature": 1.0, "chain": chain, **row}])
    values = np.array(logits, np.float32)
    candidates = Candidates(
        ids=np.arange(len(values)),
        logits=values,
        penalize=partial(penalize, sampling=arrays, r=0),
        dry=dict(zip(arrays.dry_ids.tolist(), arrays.dry_values, strict=True)),
        chance=uniform(0, 0, 0, 1),
        state=math.nan,
        vocab_size=len(values),
    )
    run_chain(candidates, arrays.chain_kinds, arrays.chain_values)
    return set(candidates.ids.tolist())


def prefix(order: list[int], p: dict[int, float], mass: float, min_keep: int) -> set[int]:
    count = 1
    while math.fsum(p[i] for i in order[:count]) < mass and count < len(order):
        count += 1
    margin = math.fsum(p[i] for i in order[:count]) - mass
    assume(abs(margin) > 1e-5 and abs(margin - p[order[count - 1]]) > 1e-5)  # not at the very edge
    return set(order[: max(count, min_keep)])


@settings(max_examples=40, deadline=None)
@given(LISTS, st.integers(1, 30))
def test_top_k_keeps_the_largest(logits: list[float], k: int) -> None:
    assert kept(logits, [(Kind.TOP_K, k)]) == set(by_logit(dict(enumerate(logits)))[:k])


@settings(max_examples=40, deadline=None)
@given(LISTS, MASSES, KEEPS)
def test_top_p_keeps_the_likeliest_up_to_a_mass(logits: list[float], mass: float, keep: int) -> None:
    named = dict(enumerate(logits))
    expected = prefix(by_logit(named), probabilities(named), mass, keep)
    assert kept(logits, [(Kind.TOP_P, mass, keep)]) == expected


@settings(max_examples=40, deadline=None)
@given(LISTS, st.sampled_from([0.01, 0.1, 0.5, 1.0]), KEEPS)
def test_min_p_keeps_a_share_of_the_best(logits: list[float], share: float, keep: int) -> None:
    p = probabilities(dict(enumerate(logits)))
    best = max(p.values())
    assume(all(abs(x / best - share) > 1e-5 * share or logits[i] == max(logits) for i, x in p.items()))
    expected = {i for i, x in p.items() if x >= share * best}
    if len(expected) < keep:
        expected = set(by_logit(dict(enumerate(logits)))[:keep])
    assert kept(logits, [(Kind.MIN_P, share, keep)]) == expected


@settings(max_examples=40, deadline=None)
@given(LISTS, MASSES, KEEPS)
def test_typical_p_keeps_what_surprises_as_much_as_expected(logits: list[float], mass: float, keep: int) -> None:
    """Meister et al., "Locally typical sampling", 2022."""
    p = probabilities(dict(enumerate(logits)))
    entropy = -math.fsum(x * math.log(x) for x in p.values() if x > 0)
    oddity = {i: abs(-math.log(max(x, 1e-300)) - entropy) for i, x in p.items()}
    order = sorted(p, key=lambda i: oddity[i])
    assume(all(oddity[b] - oddity[a] > 1e-4 for a, b in itertools.pairwise(order)))
    assert kept(logits, [(Kind.TYPICAL_P, mass, keep)]) == prefix(order, p, mass, keep)


@settings(max_examples=40, deadline=None)
@given(LISTS, st.sampled_from([0.3, 1.0, 2.0]))
def test_top_n_sigma_keeps_what_is_near_the_largest(logits: list[float], n: float) -> None:
    """Tang et al., "Top-n-sigma", 2024: within n standard deviations of the largest logit."""
    mean = math.fsum(logits) / len(logits)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in logits) / len(logits))
    edge = max(logits) - n * sigma
    assume(all(abs(x - edge) > 1e-4 for x in logits))
    assert kept(logits, [(Kind.TOP_N_SIGMA, n)]) == {i for i, x in enumerate(logits) if x >= edge}


@settings(max_examples=60, deadline=None)
@given(LISTS, st.sampled_from([0.01, 0.05, 0.2, 0.4, 0.6]), KEEPS)
def test_xtc_leaves_out_all_likely_ones_but_the_last(logits: list[float], threshold: float, keep: int) -> None:
    """Of those above the threshold the least likely stays."""
    p = probabilities(dict(enumerate(logits)))
    assume(all(abs(x - threshold) > 1e-5 for x in p.values()))
    likely = [i for i in by_logit(dict(enumerate(logits))) if p[i] >= threshold]
    dropped = set(likely[:-1])
    if len(p) - len(dropped) < keep:
        dropped = set()
    assert kept(logits, [(Kind.XTC, 1.0, threshold, keep)]) == set(p) - dropped
    assert kept(logits, [(Kind.XTC, 0.0, threshold, keep)]) == set(p)


def test_xtc_takes_its_chance_from_a_draw_of_its_own() -> None:
    logits, chain = np.array([3.0, 2.0, -1.0], np.float32), [(Kind.XTC, 0.4, 0.1, 0), (Kind.TOP_K, 1)]
    rows = [{"temperature": 1.0, "seed": s, "chain": chain} for s in range(1000)]
    ids = choose(np.tile(logits, (1000, 1)), sampling_arrays(rows), None).token_ids
    assert ids.tolist() == [1 if uniform(s, 0, 0, 1) < 0.4 else 0 for s in range(1000)]
    assert 350 < (ids == 1).sum() < 450


@settings(max_examples=60, deadline=None)
@given(LISTS, st.sampled_from([0.5, 1.0, 1.5]), st.sampled_from([0.2, 1.0]), st.sampled_from([0.5, 1.0, 2.0]))
def test_dynamic_temperature_follows_the_entropy(
    logits: list[float], temperature: float, spread: float, exponent: float
) -> None:
    p = probabilities(dict(enumerate(logits)))
    entropy = -math.fsum(x * math.log(x) for x in p.values() if x > 0)
    low, high = max(temperature - spread, 0.0), temperature + spread
    expected = max(low + (high - low) * (entropy / math.log(len(p))) ** exponent, 0.01)
    assert_same_draws(
        logits, [(Kind.TEMPERATURE, temperature, spread, exponent)], {i: x / expected for i, x in enumerate(logits)}
    )


def assert_same_draws(logits: list[float], chain: list[tuple[float, ...]], expected: Logits) -> None:
    """That the chain draws as from `expected` alone, at u that lie off the edges."""
    p = probabilities(expected)
    rows = [{"temperature": 1.0, "seed": s, "position": 7, "chain": chain} for s in range(60)]
    ids = choose(np.array([logits] * 60, np.float32), sampling_arrays(rows), None).token_ids.tolist()
    for s, found in enumerate(ids):
        u, below = uniform(s, 7, 0), 0.0
        for i in sorted(p):
            if abs(below - u) < 1e-4 or abs(below + p[i] - u) < 1e-4:
                break  # too near an edge to tell
            below += p[i]
            if below > u:
                assert found == i
                break


@settings(max_examples=40, deadline=None)
@given(LISTS, st.permutations(["penalties", "temperature", "top_k", "min_p"]))
def test_samplers_run_in_the_order_given(logits: list[float], order: list[str]) -> None:
    row = {"repetition_penalty": 1.7, "history": {0: 0, 1: 2}, "frequency_penalty": 0.5}
    steps = {
        "penalties": (Kind.PENALTIES,),
        "temperature": (Kind.TEMPERATURE, 0.5, 0, 1),
        "top_k": (Kind.TOP_K, 5),
        "min_p": (Kind.MIN_P, 0.1, 0),
    }
    now = {i: float(np.float32(x)) for i, x in enumerate(logits)}
    for name in order:
        if name == "penalties":
            for i, count in row["history"].items():
                if i in now:
                    now[i] = (now[i] / 1.7 if now[i] > 0 else now[i] * 1.7) - 0.5 * count
        elif name == "temperature":
            now = {i: x / 0.5 for i, x in now.items()}
        elif name == "top_k":
            now = {i: now[i] for i in by_logit(now)[:5]}
        else:
            assume(all(abs(x - max(now.values()) - math.log(0.1)) > 1e-4 for x in now.values()))
            now = {i: x for i, x in now.items() if x >= max(now.values()) + math.log(0.1)}
    gaps = sorted(now.values())
    assume(all(b - a > 1e-4 for a, b in itertools.pairwise(gaps)))
    assert kept(logits, [steps[name] for name in order], **row) == set(now)


def test_dry_is_subtracted_where_the_chain_says() -> None:
    logits = [5.0, 4.0, 3.0, 2.0]
    assert kept(logits, [(Kind.DRY,), (Kind.TOP_K, 2)], dry={0: 2.5, 3: 1.0}) == {1, 2}
    assert kept(logits, [(Kind.TOP_K, 2), (Kind.DRY,)], dry={0: 2.5, 3: 1.0}) == {0, 1}
    greedy = [{"temperature": 0.0, "chain": [(Kind.DRY,)], "dry": {0: 1.5}}]
    assert choose(np.array([logits], np.float32), sampling_arrays(greedy), None).token_ids.tolist() == [1]


@pytest.mark.parametrize("mu", [0.2, 2.0, 4.0, 9.0])
def test_mirostat_2_keeps_what_surprises_less_than_mu(mu: float) -> None:
    """Basu et al., "Mirostat", 2021; surprise in bits, mu moved by eta times the error."""
    logits = np.random.default_rng(0).standard_normal(40).astype(np.float32) * 2
    p = probabilities(dict(enumerate(logits.tolist())))
    allowed = {i for i, x in p.items() if -math.log2(x) <= mu} or {int(logits.argmax())}
    check_mirostat(logits, Kind.MIROSTAT_2, mu, allowed)


@pytest.mark.parametrize("mu", [0.2, 2.0, 4.0, 9.0])
def test_mirostat_1_keeps_as_many_as_zipf_foretells(mu: float) -> None:
    logits = np.random.default_rng(0).standard_normal(300).astype(np.float32) * 2
    p = probabilities(dict(enumerate(logits.tolist())))
    order = by_logit(dict(enumerate(logits.tolist())))
    t = [math.log((i + 2) / (i + 1)) for i in range(99)]
    b = [math.log(p[order[i]] / p[order[i + 1]]) for i in range(99)]
    s = math.fsum(x * y for x, y in zip(t, b, strict=True)) / math.fsum(x * x for x in t)
    k = ((s - 1) * 2**mu / (1 - 300 ** (1 - s))) ** (1 / s)
    check_mirostat(logits, Kind.MIROSTAT_1, mu, set(order[: max(int(k), 1)]))


def check_mirostat(logits: np.ndarray, kind: Kind, mu: float, allowed: set[int]) -> None:
    rows = [
        {"temperature": 1.0, "seed": s, "chain": [(kind, 3.0, 0.2)], "sampler_state": mu}
        for s in range(40 * len(allowed))
    ]
    choices = choose(np.tile(logits, (len(rows), 1)), sampling_arrays(rows), None)
    assert set(choices.token_ids.tolist()) <= allowed
    p = probabilities({i: float(logits[i]) for i in allowed})
    for token_id, found in zip(choices.token_ids.tolist(), choices.sampler_state.tolist(), strict=True):
        assert found == pytest.approx(mu - 0.2 * (-math.log2(p[token_id]) - 3.0), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(LISTS, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.0, 0.9]))
def test_adaptive_p_favours_probabilities_near_what_the_average_lacks(
    logits: list[float], target: float, average: float, decay: float
) -> None:
    """llama.cpp's: 5 at the wanted probability, less by ten times d * d / (1 + d), d being the distance over 0.3."""
    p = probabilities(dict(enumerate(logits)))
    wanted = min(max(2 * target - average, 0.0), 1.0)
    away = {i: abs(x - wanted) / 0.3 for i, x in p.items()}
    q = probabilities({i: 5 - 10 * d * d / (1 + d) for i, d in away.items()})
    rows = [
        {"temperature": 1.0, "seed": s, "chain": [(Kind.ADAPTIVE_P, target, decay)], "sampler_state": average}
        for s in range(60)
    ]
    choices = choose(np.tile(np.array(logits, np.float32), (60, 1)), sampling_arrays(rows), None)
    for s, (token_id, state) in enumerate(zip(choices.token_ids.tolist(), choices.sampler_state.tolist(), strict=True)):
        assert state == pytest.approx(decay * average + (1 - decay) * p[token_id], abs=1e-6)
        before = math.fsum(q[i] for i in range(token_id))
        assert before - 1e-5 <= uniform(s, 0, 0) <= before + q[token_id] + 1e-5


@pytest.mark.parametrize("kind", [Kind.MIROSTAT_1, Kind.MIROSTAT_2])
def test_mirostat_at_the_edges(kind: Kind) -> None:
    """Equal logits, one candidate, and mu far from anything."""
    for logits in ([1.0] * 9, [-np.inf, 2.0, -np.inf], [1.0, 2.0]):
        for mu in (-1e6, -1.0, 0.0, 5.0, 1e6):
            row = {"temperature": 1.0, "chain": [(kind, 3.0, 0.2)], "sampler_state": mu}
            choices = choose(np.array([logits], np.float32), sampling_arrays([row]), None)
            assert np.isfinite(logits[int(choices.token_ids[0])])
            assert np.isfinite(choices.sampler_state[0])


@pytest.mark.parametrize("name", ["temperature after top_k", "top_n_sigma", "plain"])
def test_draws_follow_the_distribution(name: str) -> None:
    """Chi-square over 3000 fixed draws; 99.9 % of fair samplers stay below the bound."""
    logits = np.array([2.0, 1.0, 0.25, 1.5, -0.5], np.float32)
    chain, expected_logits = {
        "temperature after top_k": ([(Kind.TOP_K, 3), (Kind.TEMPERATURE, 2.0, 0, 1)], {0: 1.0, 1: 0.5, 3: 0.75}),
        "top_n_sigma": ([(Kind.TOP_N_SIGMA, 1.2)], {0: 2.0, 1: 1.0, 3: 1.5}),
        "plain": ([(Kind.TOP_K, 9)], dict(enumerate(logits.tolist()))),
    }[name]
    rows = [{"temperature": 1.0, "seed": 9, "position": i, "chain": chain} for i in range(3000)]
    ids = choose(np.tile(logits, (3000, 1)), sampling_arrays(rows), None).token_ids
    observed = np.bincount(ids, minlength=5)
    p = probabilities(expected_logits)
    assert observed[[i for i in range(5) if i not in p]].sum() == 0
    assert sum((observed[i] - 3000 * x) ** 2 / (3000 * x) for i, x in p.items()) < 18.5
