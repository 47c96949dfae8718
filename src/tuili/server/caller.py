"""Who asks: what the guards found out about a request, and what has to be undone when it ends.

Knows no wire format and no model.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

ANYBODY = "anonymous"
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
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # of every answer to this request
    notes: dict[str, Any] = field(default_factory=dict)
    asked_model: str | None = None  # as the request names it
    answering: object = None  # its Answering, once it was accepted
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)  # closed when the request has ended, however it did
