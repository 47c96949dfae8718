"""Marks follow their characters through every operation: trusted text is upper case here, untrusted lower."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.text.prompt_text import PromptText, SafeText

texts = st.lists(
    st.one_of(st.text("AB\t", max_size=4), st.text("ab \n", max_size=4).map(PromptText.outside)), max_size=5
).map(PromptText.concat)
small = st.sampled_from(["a", "A", "ab", "\t", " ", "bA", ""])
numbers = st.integers(-8, 8)


def _check(result: Any, expected: Any) -> None:
    """Same text as str gives; each untrusted character marked, each trusted one not."""
    if isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            _check(one, other)
        return
    assert isinstance(result, PromptText)
    assert result.plain() == expected
    assert type(result.plain()) is str
    marked = {i for start, stop in result.untrusted for i in range(start, stop)}
    assert marked == {i for i, char in enumerate(expected) if char in "ab \n"}
    assert all(start < stop for start, stop in result.untrusted)
    assert sorted(result.untrusted) == list(result.untrusted)


@given(texts, texts, small, numbers, numbers)
@settings(max_examples=400, deadline=None)
def test_marks_follow_characters(text: PromptText, other: PromptText, part: str, start: int, stop: int) -> None:
    plain = text.plain()
    mark = PromptText.concat(PromptText.outside(c) if c in "ab \n" else c for c in part)
    _check(text + other, plain + other.plain())
    _check("A" + text, "A" + plain)
    _check(text + "A", plain + "A")
    _check(text * 3, plain * 3)
    _check(text[start:stop], plain[start:stop])
    _check(text[::-1], plain[::-1])
    _check(list(text), list(plain))
    for name in ("strip", "lstrip", "rstrip", "split", "rsplit", "splitlines"):
        _check(getattr(text, name)(), getattr(plain, name)())
    _check(text.splitlines(True), plain.splitlines(True))
    if part:
        for name in ("strip", "lstrip", "rstrip", "split", "rsplit", "partition", "rpartition"):
            _check(getattr(text, name)(part), getattr(plain, name)(part))
        _check(text.split(part, 1), plain.split(part, 1))
        _check(text.rsplit(part, 1), plain.rsplit(part, 1))
    _check(text.removeprefix(part), plain.removeprefix(part))
    _check(text.removesuffix(part), plain.removesuffix(part))
    _check(text.replace(part, mark), plain.replace(part, part))
    _check(text.replace("a", "B", 2), plain.replace("a", "B", 2))
    _check(text.join([other, "A", mark]), plain.join([other.plain(), "A", part]))
    _check(text.rsplit(None, 1), plain.rsplit(None, 1))
    _check(PromptText("A%sB%s") % (text, other), "A%sB%s" % (plain, other.plain()))  # noqa: UP031
    _check(PromptText("A{}B{}").format(text, other), f"A{plain}B{other.plain()}")
    _check(PromptText("{1}A{0}{x}").format(text, other, x=mark), f"{other.plain()}A{plain}{part}")


@given(texts)
def test_trusted_stretches_are_the_rest(text: PromptText) -> None:
    assert "".join(text.plain()[a:b] for a, b in text.trusted()) == "".join(c for c in text.plain() if c in "AB\t")


@given(texts)
def test_text_behaves_as_its_characters(text: PromptText) -> None:
    assert text == text.plain()
    assert hash(text) == hash(text.plain())
    assert str(text) is text
    assert {text.plain(): 1}[text] == 1


@pytest.mark.parametrize("name", ["upper", "lower", "title", "capitalize"])
def test_change_of_case_keeps_marks_or_marks_all(name: str) -> None:
    mixed = PromptText.concat(["AB", PromptText.outside("ab")])
    assert getattr(mixed, name)() == getattr("ABab", name)()
    assert getattr(mixed, name)().untrusted == ((2, 4),)
    longer = PromptText.concat(["ß", PromptText.outside("ß")])
    assert longer.upper().untrusted == ((0, 4),)


@pytest.mark.parametrize("template", ["{0.__class__}", "{0[0]}", "{!r}", "{:9999}", "{__class__}", "{:{}}"])
def test_format_reads_no_attributes(template: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        PromptText(template).format("x", 5)


def test_safe_text_escapes_what_is_added() -> None:
    joined = SafeText("<b>") + PromptText.outside("<i>&'\"")
    assert joined == "<b>&lt;i&gt;&amp;&#39;&#34;"
    assert joined.untrusted == ((7, 8),)
    assert "<u>" + SafeText("<b>") == "&lt;u&gt;<b>"
