"""A backend that computes a step only when it is let through."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from support.fake_backend import FakeBackend, Handle
from tuili.backend import Batch

PATIENCE_S = 240.0  # after which a test that failed lets go of its engine


@dataclass
class GatedBackend(FakeBackend):
    """`gate` has a permit for every step that may run."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    num_begun: int = 0

    def execute(self, batch: Batch) -> Handle:
        self.num_begun += 1
        if not self.gate.acquire(timeout=PATIENCE_S):
            raise RuntimeError("nobody let this step through")
        return super().execute(batch)

    def let(self, num_steps: int = 1 << 20) -> None:
        self.gate.release(num_steps)
