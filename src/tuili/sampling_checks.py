"""What a field of SamplingParams may be: a check gives a value in the one form it has inside, or refuses it by name.

Knows values, ranges and token ids; not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tuili.checks import check_flag, refusal
from tuili.errors import InvalidRequestError

MAX_LOGIT_BIAS = 100.0  # either way; less than nothing else has, so that it bans
INT_MAX = 2**31 - 1

Check = Callable[[str, Any], Any]  # (name, value) -> the value inside; raises InvalidRequestError


class Bounds(NamedTuple):
    """What a number may be."""

    low: float
    high: float
    allowed: str
    is_integer: bool = False
    is_open: bool = False  # low itself is not allowed


_TOKEN_ID = Bounds(0, INT_MAX, f"an integer in [0, {INT_MAX}]", True)
_FINITE = Bounds(-math.inf, math.inf, "a finite number")


def check_number(name: str, value: object, bounds: Bounds) -> None:
    """Raises InvalidRequestError naming the field, what was found and what is allowed."""
    types = int if bounds.is_integer else (int, float)
    is_number = isinstance(value, types) and not isinstance(value, bool)
    if (
        not is_number
        or (isinstance(value, float) and not math.isfinite(value))
        or not bounds.low <= value <= bounds.high  # type: ignore[operator]
        or (bounds.is_open and value == bounds.low)
    ):
        raise refusal(name, value, bounds.allowed)


def number(bounds: Bounds, form: Callable[[Any], Any] | None = None) -> Check:
    """One within the bounds; `form` makes of it what it is inside."""

    def check(name: str, value: Any) -> Any:
        check_number(name, value, bounds)
        return value if form is None else form(value)

    return check


def unless(special: Any, check: Check, form: Any = None) -> Check:
    """`form` where the value is `special`, which the check does not see."""
    return lambda name, value: form if type(value) is type(special) and value == special else check(name, value)


def flag(name: str, value: Any) -> bool:
    """True or false."""
    check_flag(name, value)
    return bool(value)


def listed(name: str, values: Any, allowed: str) -> tuple[Any, ...]:
    """A list, or none at all."""
    if values is not None and not isinstance(values, list | tuple):
        raise refusal(name, values, allowed)
    return tuple(values or ())


def strings(limit: int, max_len: int, allowed: str = "a list of strings") -> Check:
    """So many at most, none of them empty or longer than that."""

    def check(name: str, values: Any) -> tuple[str, ...]:
        found = listed(name, values, allowed)
        if len(found) > limit or not all(isinstance(s, str) and 0 < len(s) <= max_len for s in found):
            raise refusal(name, values, f"at most {limit} non-empty strings of at most {max_len} characters")
        return found

    return check


def callables(name: str, values: Any) -> tuple[Any, ...]:
    """Things to call."""
    found = listed(name, values, "a list of callables")
    for one in found:
        if not callable(one):
            raise refusal(name, one, "callables")
    return found


def token_ids(name: str, values: Any) -> tuple[int, ...]:
    """Each once, in their order."""
    found = listed(name, values, "a list of token ids")
    for token_id in found:
        check_number(name, token_id, _TOKEN_ID)
    return tuple(dict.fromkeys(found))


def some_token_ids(name: str, values: Any) -> tuple[int, ...]:
    """At least one, sorted."""
    found = token_ids(name, values)
    if not found:
        raise InvalidRequestError(f"{name} must hold at least one id", param=name)
    return tuple(sorted(found))


def logit_bias(name: str, value: Any) -> Mapping[int, float]:
    """By token id, which JSON had to write as text; clamped."""
    if not isinstance(value, Mapping):
        raise refusal(name, value, "a mapping of token ids to numbers")
    found: dict[int, float] = {}
    for key, bias in value.items():
        is_text = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10
        token_id: Any = int(key) if is_text else key
        check_number(name, token_id, _TOKEN_ID)
        check_number(name, bias, _FINITE)
        found[token_id] = min(max(bias, -MAX_LOGIT_BIAS), MAX_LOGIT_BIAS)
    return found
