"""Who asks: what the guards found out about a request, and what has to be undone when it ends.

Knows no wire format and no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

ANYBODY = "anonymous"
_MAX_IGNORED_BYTES = 1024
ALL_SCOPES = frozenset({"infer", "manage"})


@dataclass(kw_only=True, slots=True)
class Caller:
    """One request's origin. `notes` goes into its line of the log: counts and names, never text of the request."""

    request_id: str
    address: str = ""
    key_id: str = ANYBODY  # a prefix of the key's hash
    scopes: frozenset[str] = frozenset()
    cache_salt: str = ""  # keeps what this key computed apart in the prefix cache
    ignored_params: tuple[str, ...] = ()  # of the body: told in a header
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # that layers add to every answer
    notes: dict[str, Any] = field(default_factory=dict)
    asks_model: bool = False  # by its path, before its body is read
    asked_model: str | None = None  # as the request names it
    answering: object = None  # its Answering, once it was accepted
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)  # closed when the request has ended, however it did

    def told_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer to this request."""
        request_id = self.request_id.encode("ascii")
        told = [(b"x-request-id", request_id), (b"request-id", request_id), *self.headers]  # the latter is Anthropic's
        if self.ignored_params:
            names = ", ".join(self.ignored_params).encode("ascii", "backslashreplace")
            clean = bytes(byte if 32 <= byte < 127 else 63 for byte in names)
            told.append((b"x-ignored-params", clean[:_MAX_IGNORED_BYTES]))
        return told


def _random_ids() -> Iterator[str]:
    """The system is asked for many at a time: asking takes longer than all else that a caller is made of."""
    while True:
        digits = os.urandom(1024).hex()
        yield from (digits[start : start + 32] for start in range(0, len(digits), 32))


_ids = _random_ids()


def new_id() -> str:
    """Of a request."""
    return next(_ids)


def new_caller(scope: MutableMapping[str, Any]) -> Caller:
    """Of a request that has just come, in whose scope it is from now on."""
    caller = Caller(request_id=new_id(), address=(scope.get("client") or ("",))[0])
    scope.setdefault("state", {})["caller"] = caller
    return caller
