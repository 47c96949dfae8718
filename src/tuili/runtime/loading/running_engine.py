"""A loaded model's engine and its backends, as whoever runs it holds them. Knows no text and no wire format."""

from __future__ import annotations

from dataclasses import dataclass

from tuili.backend import Backend
from tuili.engine.engine import Engine
from tuili.engine.loop import EngineLoop


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningEngine:
    """What loading gives, in a process without a tokenizer."""

    engine: Engine
    loop: EngineLoop
    backend: Backend
    draft_backend: Backend | None
    load_s: float

    def close(self) -> None:
        """Ends every running request with an error and frees weights and cache."""
        self.loop.close()
        for backend in (self.backend, self.draft_backend):
            if backend is not None:
                backend.close()
