"""Looking up what came before: the longest match, copied on, believed as far as it has earned."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from support.answers import ask
from tuili.config import SpeculativeConfig
from tuili.engine.cache.prefix_cache import HashChain
from tuili.engine.drafts.prompt_lookup import MAX_CANDIDATES, PromptLookup, RunIndex
from tuili.engine.sequence import Sequence

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def sequence(prompt: list[int], **sampling: object) -> Sequence:
    request = ask("r", prompt, **{"max_tokens": 1000, **sampling})
    return Sequence(
        request, lambda _: None, arrival=0, max_len=1000, block_hashes=HashChain(16, b""), vocab_size=100_000
    )


def propose(prompt: list[int], limit: int = 3, **sampling: object) -> list[int]:
    return list(PromptLookup(SpeculativeConfig()).propose(sequence(prompt, **sampling), limit).token_ids)


def match_length(text: list[int], place: int, max_length: int) -> int:
    length = 0
    while length < min(max_length, place + 1) and text[place - length] == text[-1 - length]:
        length += 1
    return length


@given(text=TEXTS, cut=st.integers(1, 60), min_length=st.integers(1, 4), max_length=st.integers(4, 9))
@example(text=[0, 1] * 30, cut=1, min_length=2, max_length=9)
def test_a_found_match_is_one_and_none_of_the_latest_is_longer(
    text: list[int], cut: int, min_length: int, max_length: int
) -> None:
    growing = text[:cut]
    index = RunIndex(growing, min_length, max_length)
    index.find(None)
    growing += text[cut:]
    found = index.find(None)
    places = [p for p in range(len(growing) - 1) if match_length(growing, p, max_length) >= min_length]
    latest = places[-MAX_CANDIDATES:]
    lengths = [match_length(growing, place, max_length) for place in latest]
    if not places:
        assert found is None
    else:
        assert found is not None
        assert found.length == match_length(growing, found.place, max_length)
        assert found.length >= max(lengths)


def test_the_longest_match_is_copied_on() -> None:
    assert propose([5, 1, 2, 3, 60, 61, 9, 2, 3, 70, 71, 8, 1, 2, 3]) == [60, 61, 9]
    assert propose([1, 2, 3, 60, 61, 9, 1, 2, 3, 70, 71, 8, 1, 2, 3], limit=2) == [70, 71]
    assert propose([1, 2, 3, 4]) == []
    assert propose([1, 2, 3, 1, 2], limit=0) == []


def test_a_match_that_touches_the_end_repeats() -> None:
    assert propose([9, 1, 2, 3, 1, 2, 3]) == [1, 2, 3]
    assert propose([4, 4, 4]) == [4] * 3


def test_what_is_too_unlikely_is_not_proposed() -> None:
    assert len(propose([*range(40), 0, 1], limit=30)) < 10
    assert len(propose([*range(40), *range(20)], limit=30)) == 30


def test_nothing_is_drafted_from_a_stop_token_on() -> None:
    assert propose([1, 2, 3, 4, 5, 6, 1, 2], stop_token_ids=[5]) == [3, 4]


def test_output_is_looked_up_too_and_the_text_may_grow_by_any_number() -> None:
    lookup, subject = PromptLookup(SpeculativeConfig()), sequence([1, 2, 3])
    assert list(lookup.propose(subject, 4).token_ids) == []
    for token_id in [7, 8, 9, 7, 8]:
        subject.append(token_id)
    assert list(lookup.propose(subject, 2).token_ids) == [9, 7]
    subject.append(9)
    assert list(lookup.propose(subject, 2).token_ids) == [7, 8]


def test_a_fork_goes_its_own_way() -> None:
    lookup, subject = PromptLookup(SpeculativeConfig()), sequence([1, 2, 3, 1, 2], n=2, temperature=1.0)
    assert list(lookup.propose(subject, 1).token_ids) == [3]
    twin = subject.fork(1)
    twin.append(9)
    subject.append(3)
    assert list(lookup.propose(twin, 1).token_ids) == []
    assert list(lookup.propose(subject, 1).token_ids) == [1]


def test_longer_matches_are_believed_more_and_experience_counts() -> None:
    lookup = PromptLookup(SpeculativeConfig())
    subject = sequence(list(range(40)) + list(range(20)))
    rising = list(lookup.propose(subject, 15).chances)
    assert rising == sorted(rising)
    assert rising[0] > 0.7
    first = rising[0]
    for i in range(20, 35):  # it goes on as foreseen
        subject.append(i)
        trusted = lookup.propose(subject, 1).chances[0]
    assert trusted > first
    for i in range(30):  # and then not any more, though drafts keep being found
        subject.append(5_000 + i)
        for token_id in range(10, 30):
            subject.append(token_id)
        doubted = lookup.propose(subject, 1).chances[0]
    assert doubted < 0.2
