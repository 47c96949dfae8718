"""Text that remembers which of its characters came from outside the chat template.

Every operation a template may apply to a string keeps the marks; where the origin of a character cannot be
followed, the result counts as from outside. Knows no templates and no tokens.
"""

from __future__ import annotations

import re
import string
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, SupportsIndex

Spans = tuple[tuple[int, int], ...]  # half-open, ascending, apart

_FORMAT_SPEC = re.compile(r"[<>=^]?[+ -]?0?\d{0,3}(\.\d{1,2})?[dfsxX%]?")
_FORMAT_FIELD = re.compile(r"\d{0,3}|[a-zA-Z]\w*", re.ASCII)
_ESCAPES = (("&", "&amp;"), (">", "&gt;"), ("<", "&lt;"), ("'", "&#39;"), ('"', "&#34;"))


class PromptText(str):
    """A string and the spans of it that are untrusted: message content, tool schemas, template arguments."""

    __slots__ = ("untrusted",)
    untrusted: Spans

    def __new__(cls, text: str, untrusted: Spans = ()) -> PromptText:
        self = super().__new__(cls, text)
        self.untrusted = untrusted
        return self

    @classmethod
    def outside(cls, text: str) -> PromptText:
        """Text none of which is to be trusted."""
        return cls(text, ((0, len(text)),) if text else ())

    @classmethod
    def of(cls, text: str) -> PromptText:
        """The text with its marks; a plain string is the template's own."""
        return text if isinstance(text, PromptText) else cls(text)

    @classmethod
    def concat(cls, parts: Iterable[str]) -> PromptText:
        """Joins parts, marks and all."""
        parts = list(parts)
        spans: list[tuple[int, int]] = []
        offset = 0
        for part in parts:
            for start, stop in part.untrusted if isinstance(part, PromptText) else ():
                if spans and spans[-1][1] == start + offset:
                    start = spans.pop()[0] - offset
                spans.append((start + offset, stop + offset))
            offset += len(part)
        return cls("".join(parts), tuple(spans))

    def plain(self) -> str:
        """The characters alone, as an ordinary string."""
        return str.__getitem__(self, slice(None))

    def trusted(self) -> Iterator[tuple[int, int]]:
        """The stretches between untrusted spans, ascending."""
        position = 0
        for start, stop in self.untrusted:
            if position < start:
                yield position, start
            position = stop
        if position < len(self):
            yield position, len(self)

    def _cut(self, start: int, stop: int) -> PromptText:
        if start >= stop:
            return PromptText("")
        spans: list[tuple[int, int]] = []
        for i in range(bisect_right(self.untrusted, start, key=itemgetter(1)), len(self.untrusted)):
            first, last = self.untrusted[i]
            if first >= stop:
                break
            spans.append((max(first, start) - start, min(last, stop) - start))
        return PromptText(str.__getitem__(self, slice(start, stop)), tuple(spans))

    def rewritten(self, text: str) -> PromptText:
        """`text` is what became of this text, in place; if the length moved, the origin is lost."""
        if not self.untrusted or len(text) == len(self):
            return PromptText(text, self.untrusted)
        return PromptText.outside(text)

    def _found(self, pieces: Iterable[str]) -> list[PromptText]:
        """Cuts out pieces of this text, in order, each at its first place after the one before."""
        found: list[PromptText] = []
        position = 0
        for piece in pieces:
            start = str.index(self, piece, position)
            position = start + len(piece)
            found.append(self._cut(start, position))
        return found

    def __str__(self) -> PromptText:
        return self

    def __iter__(self) -> Iterator[PromptText]:
        return (self._cut(i, i + 1) for i in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> PromptText:
        if not isinstance(key, slice):
            index = range(len(self))[key]
            return self._cut(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._cut(start, max(start, stop))
        return PromptText.concat(self._cut(i, i + 1) for i in range(start, stop, step))

    def __add__(self, other: str) -> PromptText:
        return PromptText.concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> PromptText:
        return PromptText.concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> PromptText:
        return PromptText.concat([self] * count.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: tuple[Any, ...] | dict[str, Any]) -> PromptText:
        """printf-style; exact for a format of plain %s, else the result is untrusted when any part of it is."""
        pieces = self.split("%s")
        if isinstance(values, tuple) and len(values) == len(pieces) - 1 and not any("%" in piece for piece in pieces):
            operands: list[str] = [value if isinstance(value, str) else str(value) for value in values]
            return PromptText.concat(part for pair in zip(pieces, [*operands, ""], strict=True) for part in pair)
        text = str.__mod__(self, values)
        parts = (self, *(values.values() if isinstance(values, dict) else values))
        is_outside = any(isinstance(part, PromptText) and part.untrusted for part in parts)
        return PromptText.outside(text) if is_outside else PromptText(text)

    def strip(self, chars: str | None = None) -> PromptText:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> PromptText:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> PromptText:
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> PromptText:
        return self._cut(len(prefix), len(self)) if str.startswith(self, prefix) else self

    def removesuffix(self, suffix: str) -> PromptText:
        return self._cut(0, len(self) - len(suffix)) if suffix and str.endswith(self, suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces = str.split(self, sep, maxsplit)
        return list(self._found(pieces)) if sep is None else list(self._separated(pieces, len(sep)))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces = str.rsplit(self, sep, maxsplit)
        return list(self._found(pieces)) if sep is None else list(self._separated(pieces, len(sep)))

    def _separated(self, pieces: Iterable[str], gap: int) -> Iterator[PromptText]:
        position = 0
        for piece in pieces:
            yield self._cut(position, position + len(piece))
            position += len(piece) + gap

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = list(self._separated(str.splitlines(self, keepends=True), 0))
        return [line if keepends else line._cut(0, len(str.splitlines(line)[0])) for line in lines]

    def partition(self, sep: str) -> tuple[str, str, str]:
        head, found, tail = str.partition(self, sep)
        first, second, third = self._separated((head, found, tail), 0)
        return first, second, third

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        head, found, tail = str.rpartition(self, sep)
        first, second, third = self._separated((head, found, tail), 0)
        return first, second, third

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> PromptText:
        if not old:
            return self._between_characters(new, count.__index__())
        return PromptText.of(new).join(self.split(old, count))

    def _between_characters(self, new: str, count: int) -> PromptText:
        limit = len(self) + 1 if count < 0 else count
        parts = [part for i, char in enumerate(self) for part in ((new, char) if i < limit else (char,))]
        return PromptText.concat([*parts, new] if len(self) < limit else parts)

    def join(self, parts: Iterable[str]) -> PromptText:
        pieces = [piece for part in parts for piece in (self, part)]
        return PromptText.concat(pieces[1:])

    def format(self, *args: Any, **kwargs: Any) -> PromptText:
        """str.format for plain fields: names and numbers with a short format, no attributes and no indices."""
        parts: list[str] = []
        automatic = 0
        for literal, field, spec, conversion in string.Formatter().parse(self.plain()):
            parts.append(self._literal(literal))
            if field is None:
                continue
            if conversion or not _FORMAT_SPEC.fullmatch(spec or "") or not _FORMAT_FIELD.fullmatch(field):
                raise ValueError(f"the format field {field!r} is not allowed")
            value = kwargs[field] if field.isidentifier() else args[int(field or automatic)]
            automatic += 1
            parts.append(value if isinstance(value, str) and not spec else _formatted(value, spec or ""))
        return PromptText.concat(parts)

    def _literal(self, text: str) -> PromptText:
        return PromptText.outside(text) if self.untrusted else PromptText(text)

    def escaped(self) -> PromptText:
        """With the five characters that mean something in HTML written as entities."""
        text = self
        for char, entity in _ESCAPES:
            text = text.replace(char, entity)
        return text

    def lower(self) -> PromptText:
        return self.rewritten(str.lower(self))

    def upper(self) -> PromptText:
        return self.rewritten(str.upper(self))

    def title(self) -> PromptText:
        return self.rewritten(str.title(self))

    def capitalize(self) -> PromptText:
        return self.rewritten(str.capitalize(self))

    def center(self, width: SupportsIndex, fillchar: str = " ") -> PromptText:
        return PromptText.outside(str.center(self, width, fillchar))

    def ljust(self, width: SupportsIndex, fillchar: str = " ") -> PromptText:
        return PromptText.concat((self, fillchar * (width.__index__() - len(self))))

    def rjust(self, width: SupportsIndex, fillchar: str = " ") -> PromptText:
        return PromptText.concat((fillchar * (width.__index__() - len(self)), self))

    def zfill(self, width: SupportsIndex) -> PromptText:
        return PromptText.outside(str.zfill(self, width))


class SafeText(PromptText):
    """Text marked with the filter `safe`: jinja escapes what is added to it. Printed, it is like any other."""

    __slots__ = ()

    def __str__(self) -> PromptText:
        return PromptText(self.plain(), self.untrusted)

    def __add__(self, other: str) -> SafeText:
        joined = PromptText.concat((self, _as_safe(other)))
        return SafeText(joined.plain(), joined.untrusted)

    def __radd__(self, other: str) -> SafeText:
        joined = PromptText.concat((_as_safe(other), self))
        return SafeText(joined.plain(), joined.untrusted)


def _as_safe(text: str) -> PromptText:
    return text if isinstance(text, SafeText) else PromptText.of(text).escaped()


def _formatted(value: object, spec: str) -> str:
    text = format(value, spec)
    return PromptText.outside(text) if isinstance(value, PromptText) and value.untrusted else text
