"""Files of a model that has not been fetched, as a source offers them. Knows no source and no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferedFile:
    """A file that a source would fetch. What `open` returns reads no more than it is asked for, or little more."""

    name: str
    num_bytes: int
    open: Callable[[], BinaryIO]


@dataclass(slots=True)
class Traffic:
    """Bytes of files received so far."""

    num_bytes: int = 0
