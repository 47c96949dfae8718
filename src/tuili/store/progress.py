"""What a pull says while it runs. Knows no terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PullProgress:
    """`step` is what is going on; bytes are of that step, total_bytes None where nobody knows."""

    step: str
    done_bytes: int = 0
    total_bytes: int | None = None


ProgressCallback = Callable[[PullProgress], None]


def ignore_progress(_: PullProgress) -> None:
    """For callers who do not watch."""
