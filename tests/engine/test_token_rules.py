"""Bad words and circles against the plainest statement of each."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.engine.sampling.token_rules import BadWords, completed_words, goes_in_circles
from tuili.types import RepetitionDetectionParams


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
