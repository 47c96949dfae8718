"""Kinds of settings: how a value is read from text, which values are allowed, and how help shows it.

`parse` reads a flag or a variable of the environment, `check` what a file says; both give the value as the
server uses it, or raise InvalidRequestError under the name they are given. Knows no setting.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuili.checks import MAX_COUNT, check_choice, check_count, check_flag, check_optional_text, refusal
from tuili.errors import InvalidRequestError
from tuili.server.api_keys import MAX_KEY_CHARS, MIN_KEY_CHARS

_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_COUNT = re.compile(r"([+-]?[0-9]{1,19}(?:\.[0-9]{1,9})?)([kKmMgG]?)")
_MULTIPLES = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
MAX_SECONDS = 1e9  # some thirty years; what is to last longer is endless


class Kind(Protocol):
    """How a value is written, and which values there are."""

    @property
    def metavar(self) -> str: ...

    def parse(self, name: str, text: str) -> Any: ...

    def check(self, name: str, value: object) -> Any: ...


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""

    metavar: str = ""

    def parse(self, name: str, text: str) -> bool:
        value = _TRUTH.get(text.strip().lower())
        if value is None:
            raise refusal(name, text, "true or false")
        return value

    def check(self, name: str, value: object) -> bool:
        check_flag(name, value)
        return bool(value)


@dataclass(frozen=True, slots=True)
class Count:
    """An integer in [low, high], or one of `only`. Text may end in k, m, g (powers of 1000) or K, M, G (of 1024).

    `automatic` are texts and values that leave the choice to the server: None.
    """

    low: int = 1
    high: int = MAX_COUNT
    only: tuple[int, ...] = ()
    automatic: tuple[object, ...] = ()
    metavar: str = "N"

    def parse(self, name: str, text: str) -> int | None:
        if text in self.automatic:
            return None
        match = _COUNT.fullmatch(text.strip())
        number = float("nan") if match is None else float(match[1]) * _MULTIPLES[match[2]]
        if match is not None and "." not in match[1]:
            return self.check(name, int(match[1]) * _MULTIPLES[match[2]])
        return self.check(name, int(number) if number.is_integer() else text)

    def check(self, name: str, value: object) -> int | None:
        if not isinstance(value, bool) and value in self.automatic:
            return None
        check_count(name, value, self.low, self.high)
        if self.only:
            check_choice(name, value, self.only)
        return value  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Number:
    """A number in (low, high], or in [low, high] with includes_low."""

    low: float
    high: float = math.inf
    includes_low: bool = False
    metavar: str = "NUMBER"

    def parse(self, name: str, text: str) -> float:
        try:
            return self.check(name, float(text))
        except ValueError as error:
            if isinstance(error, InvalidRequestError):
                raise
            raise refusal(name, text, self._allowed) from None

    def check(self, name: str, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if is_number and (self.low < value <= self.high or (self.includes_low and value == self.low)):  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise refusal(name, value, self._allowed)

    @property
    def _allowed(self) -> str:
        sign = ">=" if self.includes_low else ">"
        bracket = "[" if self.includes_low else "("
        is_open = self.high == math.inf
        return f"a number {sign} {self.low:g}" if is_open else f"a number in {bracket}{self.low:g}, {self.high:g}]"


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, as a number or as 300ms, 30s, 5m, 1h. With can_be_endless any negative value means for ever."""

    low: float = 0.0
    can_be_endless: bool = False
    metavar: str = "TIME"

    def parse(self, name: str, text: str) -> float:
        sign, unsigned = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
        found = re.findall(_DURATION, unsigned)
        if found and "".join(number + unit for number, unit in found) == unsigned:
            return self.check(name, sign * sum(float(number) * _SECONDS[unit] for number, unit in found))
        try:
            return self.check(name, float(text))
        except ValueError:
            raise refusal(name, text, self._allowed) from None

    def check(self, name: str, value: object) -> float:
        if isinstance(value, str):
            return self.parse(name, value)
        high = math.inf if self.can_be_endless else MAX_SECONDS
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < high
        if is_number and (self.low <= value or (self.can_be_endless and value < 0)):  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise refusal(name, value, self._allowed)

    @property
    def _allowed(self) -> str:
        endless = ", or negative for ever" if self.can_be_endless else ""
        least = f" >= {self.low:g}" if self.low or not self.can_be_endless else ""
        most = "" if self.can_be_endless else f" and < {MAX_SECONDS:g}"
        return f"seconds{least}{most} or a time such as 30s or 5m{endless}"


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, as a number or as 512MiB, 4GB, 4G (powers of 1024, but for KB, MB, GB, TB)."""

    metavar: str = "SIZE"

    def parse(self, name: str, text: str) -> int:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise refusal(name, text, "bytes >= 1, such as 4GiB or 500MB")
        is_decimal = text.strip()[-1:] in "bB" and not match[3]
        factor = (1000 if is_decimal else 1024) ** _POWERS[match[2].upper()]
        return self.check(name, int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor)

    def check(self, name: str, value: object) -> int:
        if isinstance(value, str):
            return self.parse(name, value)
        check_count(name, value)
        return value  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def metavar(self) -> str:
        return "|".join(self.words)

    def parse(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        check_choice(name, value, self.words)
        return str(value)


@dataclass(frozen=True, slots=True)
class Text:
    """Unicode text of at most max_chars, without control characters."""

    metavar: str = "TEXT"
    max_chars: int = 4096
    may_have_lines: bool = False

    def parse(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise refusal(name, value, "a text that is not empty")
        check_optional_text(name, value)
        if len(value) > self.max_chars:
            raise InvalidRequestError(f"{name} must have at most {self.max_chars} characters, got {len(value)}")
        if not (self.may_have_lines or value.isprintable()):
            raise refusal(name, value, "a text without control characters")
        return value


@dataclass(frozen=True, slots=True)
class Matching:
    """Text of a form, which `allowed` says in words."""

    pattern: str
    allowed: str
    metavar: str = "TEXT"

    def parse(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        text = Text(max_chars=300).check(name, value)
        if re.fullmatch(self.pattern, text) is None:
            raise refusal(name, text, self.allowed)
        return text


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that a header can carry. Its value is in no message."""

    metavar: str = "KEY"

    def parse(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        is_text = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
        if not is_text or not MIN_KEY_CHARS <= len(str(value)) <= MAX_KEY_CHARS:
            raise InvalidRequestError(
                f"{name} must be {MIN_KEY_CHARS} to {MAX_KEY_CHARS} printable ASCII characters without spaces"
            )
        return str(value)


@dataclass(frozen=True, slots=True)
class Many:
    """Several values of one kind: a flag given again, a list in a file, a JSON list or, with a separator, a line."""

    kind: Kind
    separator: str | None = None

    @property
    def metavar(self) -> str:
        return self.kind.metavar

    def parse(self, name: str, text: str) -> tuple[Any, ...]:
        if text.startswith("["):
            try:
                return self.check(name, json.loads(text))
            except (ValueError, RecursionError) as error:
                if isinstance(error, InvalidRequestError):
                    raise
                raise InvalidRequestError(f"{name} must be one value or a JSON list, it is neither") from None
        parts = [text] if self.separator is None else [part.strip() for part in text.split(self.separator)]
        return tuple(self.kind.parse(name, part) for part in parts)

    def check(self, name: str, value: object) -> tuple[Any, ...]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple):
            raise InvalidRequestError(
                f"{name} must be a list or one text, it is a value of type {type(value).__name__}"
            )
        return tuple(self.kind.check(name, item) for item in values)


@dataclass(frozen=True, slots=True)
class File:
    """The path of a regular file that can be read; kept as given."""

    metavar: str = "FILE"

    def parse(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        path = Text().check(name, value)
        try:
            with Path(path).expanduser().open("rb"):
                return path
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InvalidRequestError(f"{name}: {path!a:.200} cannot be read: {reason}") from None


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object: JSON text, or a table in a file. `none` is a word for None, where that is a choice."""

    none: str | None = None
    metavar: str = "JSON"

    def parse(self, name: str, text: str) -> Mapping[str, Any] | None:
        if text == self.none:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise refusal(name, text, self._allowed) from None
        return self.check(name, value)

    def check(self, name: str, value: object) -> Mapping[str, Any] | None:
        if value is not None and value == self.none:
            return None
        if not isinstance(value, dict):
            raise refusal(name, value, self._allowed)
        return value

    @property
    def _allowed(self) -> str:
        return "a JSON object" + (f" or {self.none!r}" if self.none else "")


@dataclass(frozen=True, slots=True)
class RecipeName:
    """A recipe of weights.recipes, or gguf for what the file has."""

    metavar: str = "RECIPE"

    def parse(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        from tuili.weights.recipes import find_recipe

        recipe = Text().check(name, value)
        if recipe != "gguf":
            try:
                find_recipe(recipe)
            except InvalidRequestError as error:
                raise InvalidRequestError(str(error).replace("quantization", name, 1)) from None
        return recipe
