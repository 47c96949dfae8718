"""DRY's penalties, bad words and circles against the plainest statement of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fake_backend import repeats
from tuili.engine.token_rules import BadWords, Dry, _common_prefixes, completed_words, goes_in_circles
from tuili.types import RepetitionDetectionParams

TOKENS = st.lists(st.integers(0, 4), min_size=1, max_size=40)


def dry(breakers: dict[int, tuple[tuple[int, ...], ...]], last_n: int = -1, allowed: int = 2) -> Dry:
    is_head = np.isin(np.arange(10), list(breakers))
    span = max((len(tail) for tails in breakers.values() for tail in tails), default=0)
    return Dry(0.8, 1.75, allowed, last_n, breakers, is_head, span)


def found(rule: Dry, tokens: list[int]) -> dict[int, float]:
    penalized = rule.penalties(tokens)
    return {} if penalized is None else dict(zip(penalized.ids.tolist(), penalized.values.tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(TOKENS, st.integers(-1, 45), st.integers(1, 5))
def test_dry_penalizes_what_would_go_on_with_a_repetition(tokens: list[int], last_n: int, allowed: int) -> None:
    window = tokens if last_n < 0 else tokens[len(tokens) - min(last_n, len(tokens)) :]
    expected = {i: 0.8 * 1.75 ** (n - allowed) for i, n in repeats(window).items() if n >= allowed}
    assert found(dry({}, last_n, allowed), tokens) == pytest.approx(expected if len(window) > allowed else {})


@settings(max_examples=300, deadline=None)
@given(TOKENS, st.integers(0, 4))
def test_no_repetition_goes_past_a_breaker(tokens: list[int], breaker: int) -> None:
    """Only what follows the last breaker counts, and breakers themselves are never penalized."""
    after = tokens[::-1].index(breaker) if breaker in tokens else len(tokens)
    expected = {}
    for end in range(len(tokens) - 1):
        n = 0
        while n < after and n <= end and tokens[end - n] == tokens[-1 - n]:
            n += 1
        follower = tokens[end + 1]
        if n >= 2 and follower != breaker:
            expected[follower] = max(expected.get(follower, 0.0), 0.8 * 1.75 ** (n - 2))
    assert found(dry({breaker: ((),)}), tokens) == pytest.approx(expected if len(tokens) > 2 else {})


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
@given(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(2, 30), st.integers(0, 9))
def test_long_repetitions_are_found_as_short_ones_are(pattern: list[int], times: int, cut: int) -> None:
    """Beyond what is compared step by step."""
    tokens = [3, *pattern * times, *pattern[:cut]]
    expected = {i: min(0.8 * 1.75 ** (n - 2), 1e30) for i, n in repeats(tokens).items() if n >= 2}
    assert found(dry({}), tokens) == pytest.approx(expected if len(tokens) > 2 else {})


def test_the_work_is_linear() -> None:
    """What took half a second a row: every earlier end goes on and on."""
    calls = 0

    class Counted(int):
        def __eq__(self, other: object) -> bool:
            nonlocal calls
            calls += 1
            return int(self) == other

        __hash__ = int.__hash__

    assert _common_prefixes([Counted(1) for _ in range(4000)])[1] == 3999
    assert calls < 3 * 4000


def test_a_bad_word_is_banned_where_its_last_token_would_complete_it() -> None:
    words = [(1, 2), (3, 1, 4), (9, 9, 9, 9)]
    assert completed_words(words, [5, 3, 1]) == [2, 4]
    assert completed_words(words, [1, 3]) == []
    assert completed_words(words, []) == []
    assert completed_words(words, [9, 9, 9]) == [9]
    bad_words = BadWords.of(words)
    assert bad_words is not None
    assert bad_words.span == 3
    for output in ([5, 3, 1], [1, 3], [], [9, 9, 9]):
        assert bad_words.banned(output) == completed_words(words, output)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=24), st.integers(1, 4), st.integers(0, 4), st.integers(2, 4))
def test_circles(tokens: list[int], longest: int, least: int, count: int) -> None:
    rule = RepetitionDetectionParams(max_pattern_size=longest, min_pattern_size=min(least, longest), min_count=count)
    sizes = range(max(min(least, longest), 1), longest + 1)
    expected = any(
        len(tokens) >= size * count and tokens[len(tokens) - size * count :] == tokens[len(tokens) - size :] * count
        for size in sizes
    )
    assert goes_in_circles(tokens, rule) == expected
