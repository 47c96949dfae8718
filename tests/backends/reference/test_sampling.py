"""docs/sampling.md, stated a second time in the plainest way, and the published vectors of Philox4x32-10."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.batches import sampling_arrays
from tuili.backends.reference.sampling import choose, largest, philox4x32, score, uniform

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

FULL = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """The kat_vectors of Random123."""
    assert philox4x32(counter, key) == expected


def test_uniform_is_the_documented_53_bits() -> None:
    seed, position, index = 0x1122334455667788, 17, 3
    x0, x1, _, _ = philox4x32((position, index, 0, 0), (0x55667788, 0x11223344))
    bits = f"{x0:032b}{x1:032b}"[:53]
    assert uniform(seed, position, index) == int(bits, 2) / 2**53


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(0, 127))
def test_uniform_stays_below_one(seed: int, position: int, index: int) -> None:
    assert 0 <= uniform(seed, position, index) < 1


def plainly(logits: list[float], row: dict[str, Any], allowed: set[int] | None = None) -> int:
    """The eight steps over lists of Python numbers."""
    values = [np.float32(x) for x in logits]
    for i, bias in row.get("bias", {}).items():
        values[i] = np.float32(values[i] + np.float32(bias))
    if allowed is not None:
        values = [x if i in allowed else np.float32(-np.inf) for i, x in enumerate(values)]
    penalty = np.float32(row.get("repetition_penalty", 1))
    for i, count in row.get("history", {}).items():
        values[i] = values[i] / penalty if values[i] > 0 else values[i] * penalty
        values[i] -= np.float32(row.get("frequency_penalty", 0)) * np.float32(count)
        values[i] -= np.float32(row.get("presence_penalty", 0)) * np.float32(count > 0)
    if row.get("temperature", 0) == 0:
        return max(range(len(values)), key=lambda i: (values[i], -i))
    values = [x / np.float32(row["temperature"]) for x in values]
    weight = {i: np.exp(x - max(values)) for i, x in enumerate(values)}
    kept = [i for i in weight if weight[i] >= np.float32(row.get("min_p", 0))]
    kept.sort(key=lambda i: (-weight[i], i))
    kept = kept[: row.get("top_k", 0) or None]
    if row.get("top_p", 1) < 1:
        total, top_p, count = math.fsum(weight[i] for i in kept), float(np.float32(row["top_p"])), 1
        while math.fsum(weight[i] for i in kept[:count]) < top_p * total:
            count += 1
        kept = kept[:count]
    u = uniform(row.get("seed", 0), row.get("position", 0), row.get("sample_index", 0))
    total, running = sum(float(weight[i]) for i in sorted(kept)), 0.0
    for i in sorted(kept):
        running += float(weight[i])
        if running > u * total:
            return i
    raise AssertionError("the running sum ends at the total")


ROW = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0]),
        "top_k": st.integers(0, 12),
        "top_p": st.sampled_from([0.01, 0.3, 0.77, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.7, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 0.8]),
        "frequency_penalty": st.sampled_from([0.0, 0.4]),
        "seed": st.integers(0, 2**64 - 1),
        "sample_index": st.integers(0, 8),
        "position": st.integers(0, 10_000),
        "history": st.dictionaries(st.integers(0, 9), st.integers(0, 5), max_size=6),
        "bias": st.dictionaries(st.integers(0, 9), st.sampled_from([-100.0, -1.0, 2.0]), max_size=3),
    },
)
LOGITS = st.lists(st.sampled_from([-8.0, -1.5, -0.25, 0.0, 0.3, 1.0, 1.75, 4.0]), min_size=10, max_size=10)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(LOGITS, ROW), min_size=1, max_size=3), st.none() | st.sets(st.integers(0, 9), min_size=1))
def test_choices_equal_the_plain_statement(
    rows: list[tuple[list[float], dict[str, Any]]], allowed: set[int] | None
) -> None:
    logits = np.array([row[0] for row in rows], np.float32)
    bits = None if allowed is None else np.full((len(rows), 1), sum(1 << i for i in allowed), np.uint32)
    expected = [plainly(values, row, allowed) for values, row in rows]
    assert choose(logits, sampling_arrays([row for _, row in rows]), bits).token_ids.tolist() == expected


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20 000 fixed draws; 99.9 % of fair samplers stay below the bound for 6 degrees of freedom."""
    logits = np.array([1.0, -0.5, 0.25, 2.0, 0.0, -1.0, 1.5], np.float32)
    num_draws = 20_000
    rows = [{"temperature": 1.0, "seed": 42, "position": i // 4, "sample_index": i % 4} for i in range(num_draws)]
    drawn = choose(np.broadcast_to(logits, (num_draws, 7)), sampling_arrays(rows), None).token_ids
    expected = np.exp(logits) / np.exp(logits).sum() * num_draws
    observed = np.bincount(drawn, minlength=7)
    assert ((observed - expected) ** 2 / expected).sum() < 22.46


def test_bans_and_ties() -> None:
    logits = np.array([[1.0, 3.0, 3.0, 0.0]], np.float32)
    assert choose(logits, sampling_arrays([{}]), None).token_ids.tolist() == [1]
    assert choose(logits, sampling_arrays([{"bias": {1: -math.inf}}]), None).token_ids.tolist() == [2]
    nothing = np.zeros((1, 1), np.uint32)
    assert choose(logits, sampling_arrays([{"temperature": 1.0}]), nothing).token_ids.tolist() == [0]


def test_vanishing_weights_are_never_drawn() -> None:
    logits = np.array([[-1000.0, 0.0, -1000.0]], np.float32)
    rows = [{"temperature": 0.01, "seed": seed} for seed in range(200)]
    assert set(choose(np.repeat(logits, 200, axis=0), sampling_arrays(rows), None).token_ids.tolist()) == {1}


def test_scores_order_equals_by_id() -> None:
    logits = np.array([0.5, 2.0, 2.0, -1.0, 2.0], np.float32)
    scored = score(logits, 4, 4)
    assert scored.top_ids.tolist() == [1, 2, 4, 0]
    assert scored.rank == 1
    assert scored.logprob == pytest.approx(2.0 - math.log(sum(math.exp(float(x)) for x in logits)), abs=1e-6)
    assert score(logits, 3, 0).rank == 5
    assert score(logits, 0, 99).top_ids.tolist() == [1, 2, 4, 0, 3]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.integers(0, 25))
def test_largest_is_a_stable_sort(values: list[int], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert largest(np.array(values, np.float32), k).tolist() == expected
