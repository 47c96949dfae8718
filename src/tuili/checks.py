"""Checks of values that people give: each raises InvalidRequestError naming the field, what is allowed, what was found.

Knows types and ranges; not what the fields mean.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from tuili.errors import InvalidRequestError

MAX_COUNT = 2**63 - 1
_MAX_SHOWN_CHARS = 80
_MAX_AMOUNT = 2**32  # whose bytes can be counted where it is of GiB
Item = TypeVar("Item", bound=Hashable)


def shown(value: object) -> str:
    """The value as a message shows it: cut to a short piece, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, or somebody's __repr__
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 3]}..."


def refusal(name: str, value: object, allowed: str) -> InvalidRequestError:
    """The error for a value that is not allowed."""
    return InvalidRequestError(f"{name} must be {allowed}, got {shown(value)}", param=name)


def first_doubled(items: Iterable[Item]) -> Item | None:
    """The first item that has been there before, None where every item is there once."""
    seen: set[Item] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def check_count(name: str, value: object, low: int = 1, high: int = MAX_COUNT) -> None:
    """An integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refusal(name, value, f"an integer >= {low}" if high == MAX_COUNT else f"an integer in [{low}, {high}]")


def check_optional_count(name: str, value: object, low: int = 1, high: int = MAX_COUNT) -> None:
    """An integer in [low, high], or None."""
    if value is not None:
        check_count(name, value, low, high)


def check_flag(name: str, value: object) -> None:
    """True or False, no number that stands for one."""
    if not isinstance(value, bool):
        raise refusal(name, value, "true or false")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """One of a few values."""
    if not any(value is item or (type(value) is type(item) and value == item) for item in allowed):
        raise refusal(name, value, f"one of {', '.join(str(item) for item in allowed)}")


def check_optional_text(name: str, value: object) -> None:
    """A Unicode string that is not empty, or None."""
    if value is None:
        return
    if not isinstance(value, str) or not value:
        raise refusal(name, value, "a string that is not empty, or None")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refusal(name, value, "Unicode text without lone surrogates") from None


def check_optional_mapping(name: str, value: object) -> None:
    """A mapping, or None."""
    if not isinstance(value, Mapping | None):
        raise refusal(name, value, "a mapping or None")


def check_amount(name: str, value: object) -> None:
    """A number in [0, 2**32]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= sys.float_info.max):  # type: ignore[operator]
        raise refusal(name, value, "a number >= 0")
    if value > _MAX_AMOUNT:  # type: ignore[operator]
        raise refusal(name, value, f"at most {_MAX_AMOUNT}")


def check_optional_share(name: str, value: object) -> None:
    """A number in (0, 1], or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= 1):  # type: ignore[operator]
        raise refusal(name, value, "a number in (0, 1]")


def check_optional_factor(name: str, value: object) -> None:
    """A finite number > 1, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 1 < value <= sys.float_info.max):  # type: ignore[operator]
        raise refusal(name, value, "a finite number > 1")
