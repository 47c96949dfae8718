"""Steps that the backend has been given and whose results are still to be taken. Knows chunks and handles."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tuili.backend import StepHandle, StepResult
from tuili.engine.sequence import Chunk


class Refusal:
    """The handle of a step that the backend did not take."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> StepResult:
        """Raises what the backend raised."""
        raise self._error


class Launch(NamedTuple):
    """A step under way."""

    chunks: list[Chunk]
    handle: StepHandle
    started: float  # seconds of the engine's clock


class Launches(deque[Launch]):
    """All of them, in the order in which they are computed."""

    @property
    def can_go_on(self) -> bool:
        """Whether another one makes sense: the last was taken."""
        return not isinstance(self[-1].handle, Refusal)

    @property
    def can_carry(self) -> bool:
        """Whether the next tokens can be computed of whoever is in one, before those are known that it chooses."""
        return all(chunk.can_be_followed for launch in self for chunk in launch.chunks)
