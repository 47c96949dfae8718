"""A step that the backend has been given and whose result is still to be taken. Knows chunks and handles."""

from __future__ import annotations

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

    @property
    def can_be_followed(self) -> bool:
        """Whether the next step can be built before this one's result is there."""
        return not isinstance(self.handle, Refusal) and all(chunk.can_be_followed for chunk in self.chunks)
