"""What the C++ sampler draws, against each sampler's distribution stated plainly: G-tests over fixed seeds.

Parameters go the way of a request: SamplingParams, chain, arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from support.random_models import decoder, random_weights
from tuili.backend import Backend, BackendOptions, Float32, SamplingArrays
from tuili.backends import load_backend
from tuili.engine.sampling.arrays import SampleRow, row_sampling, sampling_arrays
from tuili.engine.sampling.dry import Penalized
from tuili.engine.sampling.history import SeenTokens
from tuili.types import SamplingParams, TokenRequest

VOCAB, NUM_DRAWS = 24, 30_000
LOGITS = np.random.default_rng(8).permutation(np.linspace(3.0, -1.6, VOCAB)).astype(np.float32)
HISTORY = {i: i % 3 for i in range(0, VOCAB, 2)}
DRY = {int(LOGITS.argmax()): 1.5, int(LOGITS.argsort()[-3]): 0.4}

Logits = dict[int, float]  # of the ids that are left
Step = Callable[[Logits], Logits]


@pytest.fixture(scope="module")
def backend() -> Backend:
    spec = decoder(vocab_size=VOCAB)
    return load_backend("cpu", spec, random_weights(spec, "BF16"), BackendOptions(max_model_len=64))


def share(logits: Logits) -> dict[int, float]:
    total = math.fsum(map(math.exp, logits.values()))
    return {i: math.exp(x) / total for i, x in logits.items()}


def first(logits: Logits, order: list[int], mass: float, keep: int) -> Logits:
    """The shortest prefix of `order` with so much of the probability."""
    p, count = share(logits), 1
    while math.fsum(p[i] for i in order[:count]) < mass:
        count += 1
    return {i: logits[i] for i in order[: max(count, keep)]}


def by_logit(logits: Logits) -> list[int]:
    return sorted(logits, key=lambda i: -logits[i])


def top_k(k: int) -> Step:
    return lambda logits: {i: logits[i] for i in by_logit(logits)[:k]}


def top_p(mass: float, keep: int = 0) -> Step:
    return lambda logits: first(logits, by_logit(logits), mass, keep)


def min_p(least: float, keep: int = 0) -> Step:
    def step(logits: Logits) -> Logits:
        p = share(logits)
        count = sum(x >= least * max(p.values()) for x in p.values())
        return top_k(max(count, keep))(logits)

    return step


def entropy(logits: Logits) -> float:
    return -math.fsum(x * math.log(x) for x in share(logits).values())


def typical_p(mass: float, keep: int = 0) -> Step:
    def step(logits: Logits) -> Logits:
        p, mean = share(logits), entropy(logits)
        return first(logits, sorted(p, key=lambda i: abs(-math.log(p[i]) - mean)), mass, keep)

    return step


def top_n_sigma(n: float) -> Step:
    return lambda logits: {
        i: x for i, x in logits.items() if x >= max(logits.values()) - n * float(np.std(list(logits.values())))
    }


def temperature(t: float, spread: float = 0.0, exponent: float = 1.0) -> Step:
    def step(logits: Logits) -> Logits:
        low, high = max(t - spread, 0.0), t + spread
        now = low + (high - low) * (entropy(logits) / math.log(len(logits))) ** exponent if spread else t
        return {i: x / max(now, 0.01) for i, x in logits.items()}

    return step


def xtc(threshold: float, keep: int = 0) -> Step:
    """Where its chance comes."""

    def step(logits: Logits) -> Logits:
        likely = [i for i in by_logit(logits) if share(logits)[i] >= threshold]
        left = {i: x for i, x in logits.items() if i not in likely[:-1]}
        return left if len(left) >= keep else logits

    return step


def penalties(repetition: float, frequency: float, presence: float) -> Step:
    def one(i: int, x: float) -> float:
        if i not in HISTORY:
            return x
        return (x / repetition if x > 0 else x * repetition) - frequency * HISTORY[i] - presence * (HISTORY[i] > 0)

    return lambda logits: {i: one(i, x) for i, x in logits.items()}


def dry(logits: Logits) -> Logits:
    return {i: x - DRY.get(i, 0.0) for i, x in logits.items()}


def adaptive_p(wanted: float) -> Step:
    def step(logits: Logits) -> Logits:
        away = {i: abs(p - wanted) / 0.3 for i, p in share(logits).items()}
        return {i: 5 - 10 * d * d / (1 + d) for i, d in away.items()}

    return step


EVERYTHING: dict[str, Any] = {
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.2,
    "presence_penalty": -0.3,
    "temperature": 1.4,
    "min_p": 0.03,
    "top_k": 15,
    "typical_p": 0.95,
    "top_p": 0.9,
    "top_n_sigma": 2.2,
    "xtc_probability": 0.3,
    "xtc_threshold": 0.12,
}
ALL_PENALTIES, WARM = penalties(1.2, 0.2, -0.3), temperature(1.4)
CASES: dict[str, tuple[dict[str, Any], Sequence[Step]]] = {
    "temperature": ({"temperature": 0.6}, [temperature(0.6)]),
    "top_k": ({"top_k": 7}, [top_k(7)]),
    "top_p": ({"top_p": 0.7}, [top_p(0.7)]),
    "top_p keeps more": ({"top_p": 0.2, "min_keep": 6}, [top_p(0.2, 6)]),
    "min_p": ({"min_p": 0.12}, [min_p(0.12)]),
    "min_p keeps more": ({"min_p": 0.9, "min_keep": 5}, [min_p(0.9, 5)]),
    "typical_p": ({"typical_p": 0.5}, [typical_p(0.5)]),
    "typical_p keeps more": ({"typical_p": 0.1, "min_keep": 6}, [typical_p(0.1, 6)]),
    "top_n_sigma": ({"top_n_sigma": 1.3}, [top_n_sigma(1.3)]),
    "dynamic temperature": (
        {"temperature": 0.7, "dynatemp_range": 0.6, "dynatemp_exponent": 2.0},
        [temperature(0.7, 0.6, 2.0)],
    ),
    "penalties": (
        {"repetition_penalty": 1.5, "frequency_penalty": 0.4, "presence_penalty": 0.3},
        [penalties(1.5, 0.4, 0.3)],
    ),
    "dry": ({"dry_multiplier": 1.0}, [dry]),
    "xtc": ({"xtc_probability": 0.35, "xtc_threshold": 0.08}, [xtc(0.08)]),
    "xtc always": ({"xtc_probability": 1.0, "xtc_threshold": 0.08}, [xtc(0.08)]),
    "adaptive_p": ({"adaptive_target": 0.1}, [adaptive_p(0.1)]),
    "adaptive_p behind min_p": ({"adaptive_target": 0.05, "min_p": 0.2}, [min_p(0.2), adaptive_p(0.05)]),
    "default order": (
        EVERYTHING,
        [ALL_PENALTIES, WARM, top_n_sigma(2.2), min_p(0.03), top_k(15), typical_p(0.95), top_p(0.9), xtc(0.12)],
    ),
    "llama.cpp's order": (
        EVERYTHING | {"samplers": "edskypmxt"},
        [ALL_PENALTIES, top_n_sigma(2.2), top_k(15), typical_p(0.95), top_p(0.9), min_p(0.03), xtc(0.12), WARM],
    ),
    "backwards": (
        EVERYTHING | {"samplers": "txmpykse"},
        [WARM, xtc(0.12), min_p(0.03), top_p(0.9), typical_p(0.95), top_k(15), top_n_sigma(2.2), ALL_PENALTIES],
    ),
    "some of them": (EVERYTHING | {"samplers": "pkt"}, [top_p(0.9), top_k(15), WARM]),
    "top_p before temperature": ({"samplers": "pt", "top_p": 0.6, "temperature": 2.0}, [top_p(0.6), temperature(2.0)]),
}


def stated(params: dict[str, Any], steps: Sequence[Step]) -> np.ndarray:
    """[VOCAB] probabilities: XTC comes with its chance, the rest always."""
    chance = params.get("xtc_probability", 1.0)
    found = np.zeros(VOCAB)
    for weight, comes in ((chance, True), (1.0 - chance, False)):
        logits = dict(enumerate(LOGITS.astype(float).tolist()))
        for step in steps:
            logits = step(logits) if comes or "xtc" not in step.__qualname__ else logits
        for i, p in share(logits).items():
            found[i] += weight * p
    return found


def arrays(
    count: int, sampler_state: Sequence[float] | None = None, position: int = 0, **params: Any
) -> SamplingArrays:
    """Rows of one request that differ in position, or, with states, in their answer alone."""
    request = TokenRequest(request_id="r", prompt_token_ids=(1,), sampling=SamplingParams(**params), seed=20)
    sampling = row_sampling(request, frozenset(), VOCAB)
    seen = SeenTokens(np.array(list(HISTORY), np.int32), np.array(list(HISTORY.values()), np.int32))
    subtracted = Penalized(np.array(list(DRY), np.int32), np.array(list(DRY.values()), np.float32))
    states = [sampling.sampler_state] * count if sampler_state is None else sampler_state
    more = (seen if sampling.uses_history else None, None, subtracted if sampling.dry else None)
    places = [(0, i) if sampler_state is None else (i, position) for i in range(count)]
    return sampling_arrays([SampleRow(sampling, *at, *more, x) for at, x in zip(places, states, strict=True)])


def g_over_bound(observed: np.ndarray, expected: np.ndarray) -> float:
    """The G statistic over what 999 of 1000 fair samplers stay below (Wilson and Hilferty's approximation)."""
    seen = observed > 0
    g = 2 * float((observed[seen] * np.log(observed[seen] / np.maximum(expected[seen], 1e-9))).sum())
    freedom = int((expected > 0).sum()) - 1
    return g / (freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3)


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_stated_distribution(backend: Backend, name: str) -> None:
    params, steps = CASES[name]
    drawn = backend.sample(np.tile(LOGITS, (NUM_DRAWS, 1)), arrays(NUM_DRAWS, **params), None).token_ids
    observed, expected = np.bincount(drawn, minlength=VOCAB), NUM_DRAWS * stated(params, steps)
    assert observed[expected == 0].sum() == 0
    assert g_over_bound(observed, expected) < 1
    assert g_over_bound(observed, NUM_DRAWS * stated({}, [])) > 5, "these draws would prove nothing"


def test_the_order_and_the_chance_matter() -> None:
    """Guards the test above: neighbouring statements are told apart by so many draws."""
    stories = [
        stated(*CASES[name]) for name in ("default order", "llama.cpp's order", "backwards", "xtc", "xtc always")
    ]
    for i, one in enumerate(stories):
        for other in stories[:i]:
            assert g_over_bound(NUM_DRAWS * one, NUM_DRAWS * other) > 5


NUM_ANSWERS, NUM_STEPS = 2000, 25
STATES = {
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 2.5, "mirostat_eta": 0.3},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 2.5, "mirostat_eta": 0.3},
    "mirostat 2, hot": {"mirostat": 2, "mirostat_tau": 1.5, "mirostat_eta": 1.0, "temperature": 1.5},
    "adaptive_p": {"adaptive_target": 0.2, "adaptive_decay": 0.7},
}


def rows_stated(logits: np.ndarray, state: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """[answers, VOCAB] probabilities for one step's logits and every answer's state."""
    p = np.exp(logits) / np.exp(logits).sum()
    if "adaptive_target" in params:
        wanted = np.clip(2 * params["adaptive_target"] - state, 0, 1)[:, None]
        away = np.abs(p - wanted) / 0.3
        weights = np.exp(5 - 10 * away**2 / (1 + away))
    elif params["mirostat"] == 2:
        kept = -np.log2(p) <= state[:, None]
        kept[~kept.any(1), p.argmax()] = True
        weights = kept * p
    else:
        best = np.sort(p)[::-1]
        t = np.log(np.arange(2, VOCAB + 1) / np.arange(1, VOCAB))
        s = (t * np.log(best[:-1] / best[1:])).sum() / (t * t).sum()
        k = ((s - 1) * 2**state / (1 - VOCAB ** (1 - s))) ** (1 / s)
        weights = (np.argsort(np.argsort(-p)) < np.maximum(np.floor(k), 1)[:, None]) * p
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("name", STATES)
def test_states_steer_every_answer_over_its_steps(backend: Backend, name: str) -> None:
    """2000 answers over 25 steps of changing logits, each with a state of its own."""
    params, generator = STATES[name], np.random.default_rng(3)
    state = np.full(NUM_ANSWERS, params.get("adaptive_target", 2 * params.get("mirostat_tau", 0.0)))
    observed, expected, kept_surprise = np.zeros(VOCAB), np.zeros(VOCAB), []
    for position in range(NUM_STEPS):
        logits: Float32 = generator.permutation(LOGITS) * np.float32(generator.uniform(0.7, 1.6))
        p = rows_stated(logits / params.get("temperature", 1.0), state, params)
        choices = backend.sample(
            np.tile(logits, (NUM_ANSWERS, 1)), arrays(NUM_ANSWERS, state.tolist(), position, **params), None
        )
        own = p[np.arange(NUM_ANSWERS), choices.token_ids]
        assert (own > 0).all()
        if "adaptive_target" in params:
            before = (np.exp(logits) / np.exp(logits).sum())[choices.token_ids]
            state = params["adaptive_decay"] * state + (1 - params["adaptive_decay"]) * before
        else:
            state = state - params["mirostat_eta"] * (-np.log2(own) - params["mirostat_tau"])
            kept_surprise.append(float(-np.log2(own).mean()))
        np.testing.assert_allclose(choices.sampler_state, state, rtol=1e-4, atol=1e-5)
        state = choices.sampler_state.astype(float)
        ranks = np.argsort(np.argsort(-logits))
        observed += np.bincount(ranks[choices.token_ids], minlength=VOCAB)
        expected[ranks] += p.sum(0)
    assert g_over_bound(observed, expected) < 1
    assert g_over_bound(observed, observed.sum() * np.sort(stated({}, []))[::-1]) > 5
    assert not kept_surprise or np.mean(kept_surprise[10:]) == pytest.approx(params["mirostat_tau"], rel=0.1)
