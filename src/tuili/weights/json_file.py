"""JSON from files nobody vouches for: bounded in size and depth, objects without duplicate keys.

Knows JSON; not what the objects mean.
"""

from __future__ import annotations

import json
from typing import Any

from tuili.errors import ModelFileError

MAX_ITEMS = 4_000_000  # objects, arrays and separators: what decides how much memory the parsed form takes


def parse_object(data: bytes, file_name: str) -> dict[str, Any]:
    """The JSON object in `data`, UTF-8.

    Raises ModelFileError for anything else, for duplicate keys, unpaired surrogates, NaN and infinities,
    and for nesting deeper than the parser's stack.
    """
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > MAX_ITEMS:
        raise ModelFileError(f"{file_name}: JSON of more than {MAX_ITEMS} items, more are not allowed")
    try:
        parsed = json.loads(
            data.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant, parse_int=_parse_int
        )
    except RecursionError:
        raise ModelFileError(f"{file_name}: JSON nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{file_name}: byte {error.start} is not UTF-8, JSON must be") from None
    except ValueError as error:
        raise ModelFileError(f"{file_name}: not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ModelFileError(f"{file_name}: JSON {type(parsed).__name__}, an object is expected")
    return parsed


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in table if keys.count(key) > 1)
        raise ValueError(f"duplicate key {duplicate!r:.80}")
    for key in table:
        if not key.isascii():
            _check_surrogates(key)
    return table


def _check_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"unpaired surrogate in {text!a:.80}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _parse_int(digits: str) -> int | float:
    """As other parsers read them: "-0" is a float, as no integer is negative zero."""
    return -0.0 if digits == "-0" else int(digits)
