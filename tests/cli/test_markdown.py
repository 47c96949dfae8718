"""Markdown rendered while it comes: the same blocks however the text was cut."""

from __future__ import annotations

import io
import random

import pytest

from tuili.cli.markdown import MarkdownWriter

TEXT = """# Title

Some **bold** text
on two lines.

- one
- two

```python
a = 1

b = 2
```

The end."""


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def rendered(pieces: list[str]) -> str:
    screen = _Screen()
    writer = MarkdownWriter(screen)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    return screen.getvalue()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_cuts_do_not_show() -> None:
    whole = rendered([TEXT])
    rng = random.Random(0)
    for _ in range(10):
        cuts = sorted(rng.sample(range(1, len(TEXT)), 6))
        assert rendered([TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]) == whole
    assert rendered(list(TEXT)) == whole


def test_blocks_come_when_they_are_whole() -> None:
    screen = _Screen()
    writer = MarkdownWriter(screen)
    writer.write("first\n")
    assert screen.getvalue() == ""
    writer.write("\n```\ncode\n\nmore")
    assert "first" in screen.getvalue()
    assert "code" not in screen.getvalue()
    writer.write("\n```\n\n")
    assert "more" in screen.getvalue()
    writer.finish()


def test_no_text_paints_the_terminal() -> None:
    assert "\x1b]0;title" not in rendered(["\x1b]0;title\x07 hello"])
