"""The form of a Modelfile: instructions, their values and where they stand; read and written.

Knows no instruction's meaning beyond its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tuili.checks import shown
from tuili.errors import InvalidRequestError

INSTRUCTIONS = (
    *("FROM", "PARAMETER", "SYSTEM", "TEMPLATE", "MESSAGE", "LICENSE"),
    *("ADAPTER", "DRAFT", "RENDERER", "PARSER", "REQUIRES"),
)
_KEYED = ("PARAMETER", "MESSAGE")  # a word comes before their value
_BLANK = re.compile(r"\s*")
_SPACE = re.compile(r"[^\S\r\n]*")
_LINE = re.compile(r"[^\r\n]*")
_WORD = re.compile(r"\S+")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_QUOTES = {'"""': re.compile(r'"""[^\S\r\n]*(?=[\r\n]|\Z)'), '"': re.compile(r'"[^\S\r\n]*(?=[\r\n]|\Z)')}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands, both from 1."""

    file: str
    line: int
    column: int

    def refusal(self, found: str, allowed: str) -> InvalidRequestError:
        """The error for what stands there."""
        where = f"{self.file}, line {self.line}, column {self.column}"
        return InvalidRequestError(f"{where}: found {found}; allowed: {allowed}", param="model")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its name in capitals. `key` is a PARAMETER's name or a MESSAGE's role, else ""."""

    name: str
    key: str
    value: str
    place: Place  # of the key, else of the value


def instructions(text: str, file: str) -> Iterator[Instruction]:
    """The instructions of a Modelfile in order. Raises InvalidRequestError naming line, column, found and allowed.

    A value ends with its line, unless quotes begin it: then with the first such quotes that end a line. Inside,
    everything stands for itself, as Ollama has it.
    """
    reader = _Reader(text, file)
    while (instruction := reader.next()) is not None:
        yield instruction


def quoted(value: str) -> str:
    """A value as a Modelfile has it. Raises InvalidRequestError for a text that holds what would end it."""
    if value and value == value.strip() and not value.startswith('"') and _NEWLINE.search(value) is None:
        return value
    for quotes, end in _QUOTES.items():
        if end.search(f"{value}{quotes}").start() == len(value):  # type: ignore[union-attr]
            return f"{quotes}{value}{quotes}"
    raise InvalidRequestError(f"a Modelfile cannot hold {shown(value)}: quotes end one of its lines")


class _Reader:
    """A position in a text, and the line it is in."""

    def __init__(self, text: str, file: str) -> None:
        self._text, self._file = text, file
        self._at = 0
        self._line, self._line_start = 1, 0

    def next(self) -> Instruction | None:
        self._skip_comments()
        if self._at == len(self._text):
            return None
        place, written = self._place(), self._take(_WORD)
        name = written.upper()
        if name not in INSTRUCTIONS:
            raise place.refusal(shown(written), f"a comment, or one of {', '.join(INSTRUCTIONS)}")
        self._take(_SPACE)
        place = self._place()
        key = self._key(name) if name in _KEYED else ""
        return Instruction(name, key, self._value(f"{name} {key}".rstrip()), place)

    def _skip_comments(self) -> None:
        self._move(_BLANK)
        while self._text.startswith("#", self._at):
            self._take(_LINE)
            self._move(_BLANK)

    def _key(self, name: str) -> str:
        place, key = self._place(), self._take(_WORD) if self._rest() else ""
        if not key:
            raise place.refusal("the end of the line", f"{name} with a name and a value")
        self._take(_SPACE)
        return key

    def _value(self, of: str) -> str:
        place, start = self._place(), self._at
        if not self._rest():
            raise place.refusal("the end of the line", f"a value behind {of}")
        for quotes, end in _QUOTES.items():
            if not self._text.startswith(quotes, start):
                continue
            found = end.search(self._text, start + len(quotes))
            if found is None:
                opened = shown(self._rest())
                raise place.refusal(f"{opened}, whose quotes nothing closes", f"{quotes} at the end of a line")
            self._move(end, found.start())
            return _NEWLINE.sub("\n", self._text[start + len(quotes) : found.start()])
        return self._take(_LINE).strip()

    def _rest(self) -> str:
        """What is left of the line."""
        found = _LINE.match(self._text, self._at)
        return found.group().strip() if found else ""

    def _place(self) -> Place:
        return Place(self._file, self._line, self._at - self._line_start + 1)

    def _take(self, pattern: re.Pattern[str]) -> str:
        """What the pattern, which is within a line, matches here."""
        found = pattern.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return found.group()

    def _move(self, pattern: re.Pattern[str], at: int | None = None) -> None:
        """To the end of what the pattern matches at `at`, which may lie lines behind."""
        found = pattern.match(self._text, self._at if at is None else at)
        assert found is not None
        for newline in _NEWLINE.finditer(self._text, self._at, found.end()):
            self._line, self._line_start = self._line + 1, newline.end()
        self._at = found.end()
