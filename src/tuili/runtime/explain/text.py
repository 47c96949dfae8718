"""An explanation for the terminal: titles, wrapped sentences, aligned tables."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata

from tuili.runtime.explain.facts import Explanation
from tuili.runtime.explain.words import Section, sections

_MAX_WIDTH = 110


def render_text(e: Explanation) -> str:
    """Everything, for a terminal of its width."""
    width = min(shutil.get_terminal_size((100, 24)).columns, _MAX_WIDTH)
    return "\n".join(_section(section, width) for section in sections(e))


def _section(section: Section, width: int) -> str:
    lines = [section.title, "-" * len(section.title)]
    for sentence in section.sentences:
        for line in sentence.splitlines():
            lines += textwrap.wrap(line, width) or [""]
    if section.rows:
        lines += ["", *_table(section.header, section.rows, width)]
    return "\n".join([*lines, ""])


def _table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...], width: int) -> list[str]:
    """Columns as wide as their widest cell; the last one may be cut at the terminal's edge."""
    cells = [header, *rows]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        line = "  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True)).rstrip()
        lines.append(line if _width(line) <= width else _cut(line, width))
    return lines


def _width(text: str) -> int:
    """Columns of a terminal: East Asian wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(line: str, width: int) -> str:
    while _width(line) > width - 1:
        line = line[:-1]
    return f"{line}…"
