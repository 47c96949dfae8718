"""DRY's penalties against the plainest statement of them, token by token and along drafts, and what a row costs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fake_backend import repeats
from tuili.engine.sampling import dry as module
from tuili.engine.sampling.dry import Breakers, Dry, DryRuns, Penalized, Tails

TOKENS = st.lists(st.integers(0, 4), min_size=1, max_size=40)
VOCAB = 10
BREAKERS = st.dictionaries(
    st.integers(0, 4), st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
)


def dry(breakers: Mapping[int, Tails], last_n: int = -1, allowed: int = 2, vocab: int = VOCAB) -> Dry:
    return Dry(0.8, 1.75, allowed, last_n, Breakers.of(breakers, vocab))


def plainly(tokens: list[int], breakers: Mapping[int, Tails], last_n: int = -1, allowed: int = 2) -> dict[int, float]:
    """For every earlier place, token by token."""
    text = tokens if last_n < 0 else tokens[len(tokens) - min(last_n, len(tokens)) :]
    room = len(text)
    for place in range(len(text) - 1, -1, -1):
        tails = [t for t in breakers.get(text[place], ()) if tuple(text[place + 1 : place + 1 + len(t)]) == t]
        if tails:
            room = len(text) - 1 - place - max(map(len, tails))
            break
    longest: dict[int, int] = {}
    for end in range(len(text) - 1):
        n = 0
        while n < room and n <= end and text[end - n] == text[-1 - n]:
            n += 1
        if n >= allowed and () not in breakers.get(text[end + 1], ()):
            longest[text[end + 1]] = max(longest.get(text[end + 1], 0), n)
    return {i: min(0.8 * 1.75 ** (n - allowed), 1e30) for i, n in longest.items()}


def told(penalized: Penalized | None) -> dict[int, float]:
    if penalized is None:
        return {}
    assert len(set(penalized.ids.tolist())) == len(penalized.ids) > 0
    return dict(zip(penalized.ids.tolist(), penalized.values.tolist(), strict=True))


def found(rule: Dry, tokens: list[int]) -> dict[int, float]:
    return told(DryRuns(rule, tokens).penalties())


@settings(max_examples=300, deadline=None)
@given(TOKENS, st.integers(-1, 45), st.integers(1, 5), BREAKERS)
def test_dry_penalizes_what_would_go_on_with_a_repetition(
    tokens: list[int], last_n: int, allowed: int, breakers: dict[int, Tails]
) -> None:
    """The tests' two statements agree; runs built at once and token by token do with them."""
    if not breakers and last_n < 0:
        expected = {i: 0.8 * 1.75 ** (n - allowed) for i, n in repeats(tokens).items() if n >= allowed}
        assert plainly(tokens, breakers, last_n, allowed) == pytest.approx(expected)
    if last_n == 0:
        return  # the sampler is off
    rule = dry(breakers, last_n, allowed)
    runs = DryRuns(rule, tokens[:1])
    for end in range(1, len(tokens) + 1):
        if end > 1:
            runs.add(tokens[end - 1])
        expected = plainly(tokens[:end], breakers, last_n, allowed)
        assert told(runs.penalties()) == pytest.approx(expected)
        assert found(rule, tokens[:end]) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(TOKENS, TOKENS, st.integers(-1, 9).filter(bool), BREAKERS)
def test_along_a_draft(tokens: list[int], draft: list[int], last_n: int, breakers: dict[int, Tails]) -> None:
    """As if each had been chosen, and nothing of it stays."""
    runs = DryRuns(dry(breakers, last_n), tokens)
    for _ in range(2):
        for i, penalized in enumerate(runs.along(draft)):
            assert told(penalized) == pytest.approx(plainly(tokens + draft[:i], breakers, last_n))


def test_breakers_of_several_tokens() -> None:
    """Head 7 breaks only before 8, 9; of several tails that match, the longest counts."""
    tokens = [1, 2, 3, 7, 8, 9, 1, 2, 3, 5, 1, 2, 3]
    assert found(dry({7: ((8, 9),)}), tokens) == pytest.approx({7: 0.8 * 1.75, 5: 0.8 * 1.75})
    assert found(dry({3: ((5, 1),)}), tokens) == pytest.approx({7: 0.8, 5: 0.8})
    assert found(dry({3: ((5, 2),)}), tokens) == pytest.approx({7: 0.8 * 1.75, 5: 0.8 * 1.75})


def test_long_repetitions_stay_finite() -> None:
    values = found(dry({}), [1] * 1000)
    assert np.isfinite(values[1])
    assert values[1] == pytest.approx(1e30)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(2, 30), st.integers(0, 9), st.integers(-1, 70))
def test_long_repetitions_in_a_window_that_moves(pattern: list[int], times: int, cut: int, last_n: int) -> None:
    """Longer than the room a window keeps."""
    tokens = [3, *pattern * times, *pattern[:cut]]
    if last_n == 0:
        return
    runs = DryRuns(dry({}, last_n), tokens[:2])
    for token in tokens[2:]:
        runs.add(token)
    assert told(runs.penalties()) == pytest.approx(plainly(tokens, {}, last_n))


SPITEFUL: dict[str, list[int]] = {
    "one token": [1] * 8000,
    "two in turn": [1, 2] * 4000,
    "a run, then another follower": [t for i in range(2000) for t in (1, 2, 3, 10 + i)],
    "runs of all lengths": [t for i in range(120) for t in (*[1] * i, 10 + i)],
    "heads without tails": [4, 5] * 4000,
    "heads with half a tail": [4, *[5] * 15] * 500,
}


def lines_of(call: Any) -> int:
    """Lines of dry.py that a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == module.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", SPITEFUL)
def test_a_row_takes_a_few_steps_whatever_the_text(name: str) -> None:
    """All else is one pass of NumPy over the text: no Python for each token, and no text that costs more."""
    breakers = {4: tuple(tuple([5] * i + [6]) for i in range(20))}
    runs = DryRuns(dry(breakers, allowed=1, vocab=3000), SPITEFUL[name])
    for token in SPITEFUL[name][:3]:
        assert lines_of(lambda token=token: runs.add(token)) < 400
        assert lines_of(runs.penalties) < 400


def test_a_prompt_is_read_in_linear_time() -> None:
    """What took half a second: every earlier end goes on and on."""
    for tokens in SPITEFUL.values():
        assert lines_of(lambda tokens=tokens: DryRuns(dry({4: ((6,),)}, vocab=3000), tokens)) < 16 * len(tokens) + 100
