"""Templates for prompts and file names: text with {column} and {name:low-high} in it. Knows no files and no models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuili.errors import InvalidRequestError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_RANGE = re.compile(r"(-?\d{1,18})-(-?\d{1,18})")
_PADDED = re.compile(r"0(\d{1,2})")


@dataclass(frozen=True, slots=True)
class Field:
    """A place to fill in. width pads integers with zeros; bounds, both included, draw a random integer for each row."""

    name: str
    width: int = 0
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """Text and fields in turn. `what` is how messages call it."""

    what: str
    parts: tuple[str | Field, ...]

    @classmethod
    def parse(cls, text: str, what: str) -> Template:
        """Reads {column}, {name:5-40}, {i:03}, {{ and }}. Raises InvalidRequestError saying where it is wrong."""
        parts: list[str | Field] = []
        end = 0
        for match in _PIECE.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            if match[0] in ("{{", "}}"):
                parts.append(match[0][0])
            elif match[1] is None:
                raise InvalidRequestError(
                    f"{what}: a lone {match[0]!r} at character {match.start() + 1}; write {match[0] * 2} for the "
                    "character itself",
                    param=what,
                )
            else:
                parts.append(_field(match[1], what))
        parts.append(text[end:])
        template = cls(what, tuple(part for part in parts if part != ""))
        template.ranges()
        return template

    def fields(self) -> tuple[Field, ...]:
        return tuple(part for part in self.parts if isinstance(part, Field))

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Bounds by name. Raises InvalidRequestError when one name has two."""
        found: dict[str, tuple[int, int]] = {}
        for field in self.fields():
            if field.bounds is not None and found.setdefault(field.name, field.bounds) != field.bounds:
                raise InvalidRequestError(
                    f"{self.what}: {field.name!r} has two ranges, {_text_of_bounds(found[field.name])} and "
                    f"{_text_of_bounds(field.bounds)}; a name stands for one number in a row",
                    param=self.what,
                )
        return found

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with every field filled in. Raises InvalidRequestError for a name that is not among the values."""
        return "".join(part if isinstance(part, str) else self._filled(part, values) for part in self.parts)

    def _filled(self, field: Field, values: Mapping[str, Any]) -> str:
        if field.name not in values:
            available = ", ".join(f"{{{name}}}" for name in values)
            raise InvalidRequestError(f"{self.what}: no column {field.name!r}; there are {available}", param=self.what)
        value = values[field.name]
        if value is None:
            raise InvalidRequestError(f"{self.what}: column {field.name!r} is null", param=self.what)
        if not field.width:
            return text_of(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidRequestError(
                f"{self.what}: only a whole number can be padded with zeros, and {field.name!r} is {value!r:.80}",
                param=self.what,
            )
        return f"{value:0{field.width}d}"


def _field(text: str, what: str) -> Field:
    name, colon, rule = text.partition(":")
    if not name.strip():
        raise InvalidRequestError(f"{what}: {{{text}}} names nothing; write {{{{ and }}}} for braces", param=what)
    if not colon:
        return Field(name)
    if padded := _PADDED.fullmatch(rule):
        return Field(name, width=int(padded[1]))
    bounds = _RANGE.fullmatch(rule)
    if bounds is None:
        raise InvalidRequestError(
            f"{what}: {{{text:.80}}} must be a column as {{name}}, a random number as {{name:5-40}}, or a "
            "padded one as {i:03}; write {{ and }} for braces",
            param=what,
        )
    low, high = int(bounds[1]), int(bounds[2])
    if low > high:
        raise InvalidRequestError(f"{what}: the range of {{{text}}} is empty: {low} > {high}", param=what)
    return Field(name, bounds=(low, high))


def text_of(value: Any) -> str:
    """A column's value as a prompt has it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def row_seed(job_seed: int, index: int) -> int:
    """The seed of a row, in [0, 2^64): the same for the same job and row, whatever else the job holds."""
    return _hashed(f"{job_seed}:{index}")


def drawn(job_seed: int, index: int, name: str, bounds: tuple[int, int]) -> int:
    """The number a range stands for in a row."""
    low, high = bounds
    return low + _hashed(f"{job_seed}:{index}:{name}:{low}:{high}") % (high - low + 1)


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _text_of_bounds(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}-{bounds[1]}"
