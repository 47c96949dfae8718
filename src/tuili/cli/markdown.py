"""Renders markdown while it is being written: a block at a time, once it is whole, so that nothing is painted twice.

Knows rich; no models.
"""

from __future__ import annotations

import re
from typing import TextIO

from tuili.cli.terminal import printable

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


class MarkdownWriter:
    """Collects text up to the end of a paragraph, list or fenced code, then prints that."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=out, highlight=False)
        self._text = ""

    def write(self, text: str) -> None:
        """Prints every block that `text` completes."""
        self._text += printable(text)
        while (end := _block_end(self._text)) is not None:
            block, self._text = self._text[:end], self._text[end:]
            self._print(block)

    def finish(self) -> None:
        """Prints what is left."""
        block, self._text = self._text, ""
        self._print(block)

    def _print(self, block: str) -> None:
        from rich.markdown import Markdown

        if block.strip():
            self._console.print(Markdown(block.strip("\n")))
            self._console.print()


def _block_end(text: str) -> int | None:
    """Where the first block ends: behind an empty line that is in no fenced code; None while it goes on."""
    position = 0
    while True:
        blank = re.compile(r"\S[^\n]*\n[ \t]*\n").search(text, position)
        fence = _FENCE.search(text, position)
        if fence is None or (blank is not None and blank.end() <= fence.start()):
            return None if blank is None else blank.end()
        closing = re.compile(rf"^ {{0,3}}{re.escape(fence[1])}[ \t]*\n", re.MULTILINE).search(text, fence.end())
        if closing is None:
            return None
        position = closing.end() - 1  # an empty line right behind the fence ends the block
        if text[closing.end() :].startswith("\n"):
            return closing.end() + 1
        position = closing.end()
