"""A backend of several stages in virtual time: a step passes one after the other, and each has one step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from support.fake_backend import FakeBackend, Handle
from tuili.backend import Batch


@dataclass
class FakeStages(FakeBackend):
    """num_stages is what it tells the engine, `depth` how many it has; a stage takes `fixed_s` and `token_s` per token.

    `clock` is the engine's time: it goes on when the engine waits for a result, and by host_s for each step.
    """

    is_asynchronous: bool = True
    depth: int = 1
    fixed_s: float = 0.0
    token_s: float = 1.0
    host_s: float = 0.0
    now: float = 0.0
    busy_s: float = 0.0  # of all stages together
    sizes: list[int] = field(default_factory=list)  # tokens of every step

    def clock(self) -> float:
        return self.now

    def allocate_cache(self, num_blocks: list[int]) -> None:
        super().allocate_cache(num_blocks)
        self._free = [0.0] * self.depth  # when each stage has nothing to do any more

    def execute(self, batch: Batch) -> Handle:
        self.now += self.host_s
        handle = super().execute(batch)
        done = self._passed(batch)

        def told() -> None:
            self.now = max(self.now, done)
            handle.told()

        return replace(handle, told=told)

    def _passed(self, batch: Batch) -> float:
        """When the last stage is done. What is carried comes from there, behind all steps before this one."""
        cost = self.fixed_s + self.token_s * len(batch.input_ids)
        done = max(self.now, self._free[-1]) if batch.carry.any() else self.now
        for stage in range(self.depth):
            self._free[stage] = done = max(done, self._free[stage]) + cost
        self.busy_s += cost * self.depth
        self.sizes.append(len(batch.input_ids))
        return done
