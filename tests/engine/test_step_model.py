"""What a step takes is found from steps that ran, however disturbed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.engine.step_model import PromptSpan, StepModel


def took(num_decodes: int, spans: list[PromptSpan], scale: float = 1.0) -> float:
    """Seconds of a machine that reads 8000 earlier tokens in 12 ms and computes one behind them in 3.9 ms."""
    seconds = 4e-3 + 1.2e-3 * num_decodes
    for start, size in spans:
        position = start + size / 2
        seconds += 0.9e-3 * size + 12e-3 * position / 8000 + 3e-3 * size * position / 8000
    return scale * seconds


def test_what_steps_are_made_of_is_found_and_followed() -> None:
    model, rng = StepModel(), random.Random(1)
    for scale in (1.0, 3.0):
        for _ in range(150):
            spans = [(rng.randrange(8000), rng.randrange(2, 200)) for _ in range(rng.randint(0, 3))]
            count = rng.randint(1, 32)
            model.observe(count, spans, took(count, spans, scale))
        assert model.seconds(16) == pytest.approx(took(16, [], scale), rel=0.1)
        for span in ((0, 100), (8000, 4), (8000, 100), (2000, 20)):
            assert model.seconds(8, [span]) == pytest.approx(took(8, [span], scale), rel=0.1)


def test_a_batch_that_never_ran_is_not_guessed_from_disturbed_neighbours() -> None:
    model, rng = StepModel(), random.Random(2)
    model.observe(0, [(0, 70)], 3 * took(0, [(0, 70)]))  # cold
    model.observe(1, [], took(1, []))
    for count in range(1, 14):
        spans = [(0, rng.randrange(20, 60))]
        model.observe(count, spans, took(count, spans) * rng.choice([1.0, 1.0, 1.0, 1.3, 2.0]))
    model.observe(13, [], 2.5 * took(13, []))
    assert model.seconds(32) == pytest.approx(took(32, []), rel=0.35)


def test_who_asks_alone_in_a_disturbed_moment_tells_nothing_of_a_crowd() -> None:
    """Steps with a draft of one token come while the machine is slower."""
    model = StepModel()
    model.observe(0, [(0, 70)], 1.5 * took(0, [(0, 70)]))
    for num_rows, scale in ((1, 1.0), (2, 1.5), (2, 1.4), (2, 1.6)) * 10:
        model.observe(num_rows, [], took(num_rows, [], scale))
    assert model.seconds(1) == pytest.approx(took(1, [], 1.2), rel=0.25)
    assert took(16, []) <= model.seconds(16) <= took(16, [], 1.5 * 1.5)  # not far beyond what that moment explains


def test_one_size_for_long_does_not_make_it_forget_what_others_take() -> None:
    model, rng = StepModel(), random.Random(3)
    for _ in range(10):
        for count in (1, 8, 32):
            model.observe(count, [], took(count, []))
    for _ in range(5000):
        model.observe(8, [], took(8, []) * rng.choice([0.97, 1.0, 1.03]))
    for count in (1, 8, 32):
        assert model.seconds(count) == pytest.approx(took(count, []), rel=0.1)


def test_one_prompt_teaches_enough_to_go_on_with_it() -> None:
    """Its runs shrink as they get dearer, so that reading and attending are hard to tell apart."""
    model, start = StepModel(), 0
    for count in (1, 4, 8, 8):
        model.observe(count, [], took(count, []))
    while start < 8000:
        size = max(model.num_tokens(start, 26e-3), 1)
        added = [took(8, [(start, n)]) - took(8, []) for n in (size, size + 2)]
        if start > 500:
            assert added[0] <= 1.15 * 26e-3
            assert added[1] >= 0.85 * 26e-3
        model.observe(8, [(start, size)], took(8, [(start, size)]))
        start += size


def test_level_and_factors_do_not_drift_apart_however_long_the_machine_is_disturbed() -> None:
    model, rng = StepModel(), random.Random(4)
    for _ in range(30_000):
        count = rng.choice((1, 8, 32))
        model.observe(count, [], took(count, []) * rng.lognormvariate(0, 0.5))
    assert model.seconds(8) == pytest.approx(took(8, []), rel=0.4)
    assert 1e-3 < model._level < 1e3


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9000), st.integers(1, 512), st.floats(1e-4, 100)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 9000),
    st.floats(0, 100),
)
def test_as_many_tokens_as_the_seconds_hold(
    seen: list[tuple[int, int, int, float]], start: int, seconds: float
) -> None:
    model = StepModel()
    for num_decodes, first, size, found in seen:
        model.observe(num_decodes, [(first, size)], found)
        model.observe(1 + num_decodes, [], found)
    count = model.num_tokens(start, seconds)
    assert model.added(start, count) <= seconds * 1.001 + 1e-6 or not count
    if 0 < count < 10**9:
        assert model.added(start, count + 1) >= seconds * 0.999 - 1e-6
