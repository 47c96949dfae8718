"""Stop strings: found where they are complete first, however the text is cut; nothing held back needlessly."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.text.stops import StopFinder


def _oracle(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The shortest beginning of the text that ends in a stop string; there, the longest such string."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(
    st.text("ab\n", max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 30)),
    st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_any_split_gives_the_same(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    finder = StopFinder(stops, include)
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    emitted = ""
    for start, end in pairwise(bounds):
        emitted += finder.push(text[start:end])
        held = text[len(emitted) : end]
        if finder.found is None and held:
            assert any(stop.startswith(held) and stop != held for stop in stops)
    assert (emitted + finder.flush(), finder.found) == _oracle(text, stops, include)


def test_nothing_comes_after_the_stop() -> None:
    finder = StopFinder(["END"])
    assert finder.push("one EN") == "one "
    assert finder.push("D two") == ""
    assert finder.found == "END"
    assert finder.push("three") == ""
    assert finder.flush() == ""
