"""Words for people: sizes, counts, ages, tables, and no control characters."""

from __future__ import annotations

import io
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuili.cli.terminal import (
    format_age,
    format_bytes,
    format_count,
    format_table,
    is_plain,
    one_line,
    printable,
    showing_status,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (98_362_432, "93.8 MiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (999, "999"), (134_515_008, "134.5M"), (8_030_000_000, "8.0B")])
def test_counts(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (90_000, "1 day ago")]
)
def test_ages(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


def test_tables_align_and_end_in_a_newline() -> None:
    assert format_table(("A", "BB"), [("long", "1"), ("x", "22")]) == "A     BB\nlong  1\nx     22\n"
    assert format_table(("A",), []) == "A\n"


@given(st.text())
def test_messages_cannot_paint_the_terminal(text: str) -> None:
    assert one_line(text).isprintable()
    assert all(char in "\n\t" or char.isprintable() or ord(char) >= 160 for char in printable(text))


def test_printable_keeps_text() -> None:
    assert printable("a\tb\nä 🎉\x1b[2J\x07\x9b") == "a\tb\nä 🎉[2J"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_where_there_is_no_terminal_or_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_plain(io.StringIO())
    assert not is_plain(_Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert is_plain(_Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert is_plain(_Terminal())


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_status_is_gone_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "12")
    monkeypatch.setattr("sys.stderr", screen := _Screen())
    with suppress(KeyError), showing_status() as status:
        status("reading\x1b the header")
        raise KeyError
    assert screen.getvalue() == "\r\x1b[Kreading  th\r\x1b[K"
    monkeypatch.setattr("sys.stderr", pipe := io.StringIO())
    with showing_status() as status:
        status("reading")
    assert pipe.getvalue() == ""
