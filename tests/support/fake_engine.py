"""An engine process over the fake backend, which can be told to misbehave.

    python -m support.fake_engine KEY=VALUE ... DESCRIPTOR PARENT

aborts_on=T: the process aborts at a step whose last input token of a sequence is T. hangs_on=T: such a step never ends.
breaks_on=T: the engine's own code raises there. hangs_once=FILE: the tenth step never ends, unless FILE exists;
loses_device_once=FILE: the device fails in it.
works_on=T: such a step is four seconds of work.
step_s=S: a step takes S seconds. fails_from=FILE: loading fails from the third start on; FILE counts them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from support.fake_backend import FakeBackend, Handle
from tuili.backend import Batch
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.engine.loop import EngineLoop
from tuili.errors import DeviceFailureError, InsufficientMemoryError
from tuili.runtime.loading.running_engine import RunningEngine
from tuili.runtime.supervision import engine_process

TESTS = Path(__file__).parent.parent
CONFIG = EngineConfig(max_model_len=256, max_num_seqs=20, block_size=16, max_num_batched_tokens=512)


def command(**faults: object) -> list[str]:
    """What ChildProcess starts."""
    program = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from support import fake_engine; fake_engine.main()"
    return [sys.executable, "-c", program, *(f"{key}={value}" for key, value in faults.items())]


class Breakdown(BaseException):
    """The engine's own code fails, not its backend."""


class FaultyBackend(FakeBackend):
    """Answers as the fake backend does, until a step brings what it cannot bear."""

    faults: dict[str, str]

    def execute(self, batch: Batch) -> Handle:
        time.sleep(float(self.faults.get("step_s", 0)))
        last = batch.input_ids[batch.query_start[1:] - 1].tolist()
        if self._bears_not("aborts_on", last):
            os.abort()
        if self._bears_not("hangs_on", last):
            threading.Event().wait()
        if self._bears_not("works_on", last):
            end_s = time.monotonic() + 4.0
            while time.monotonic() < end_s:
                pass
        if self._bears_not("breaks_on", last):
            raise Breakdown
        if self._is_first("hangs_once"):
            threading.Event().wait()
        if self._is_first("loses_device_once"):
            raise DeviceFailureError("cuda:0 failed: CUDA error: device-side assert triggered")
        return super().execute(batch)

    def _is_first(self, fault: str) -> bool:
        """At the tenth step of the first process."""
        if fault not in self.faults or self.num_steps != 10 or Path(self.faults[fault]).exists():
            return False
        Path(self.faults[fault]).touch()
        return True

    def _bears_not(self, fault: str, token_ids: list[int]) -> bool:
        return int(self.faults.get(fault, -1)) in token_ids


def main() -> None:
    *pairs, descriptor, parent = sys.argv[1:]
    faults = dict(pair.split("=", 1) for pair in pairs)
    engine_process.open_engine = lambda *_: _running(faults)  # type: ignore[assignment]
    os._exit(engine_process.main([descriptor, parent]))


def _running(faults: dict[str, str]) -> RunningEngine:
    if (log := faults.get("fails_from")) is not None:
        with Path(log).open("a") as file:
            file.write(".")
        if Path(log).stat().st_size >= 3:
            raise InsufficientMemoryError("the model needs 12 GiB, 3 GiB are free")
    backend = FaultyBackend()
    backend.faults = faults
    engine = Engine(backend, CONFIG)
    return RunningEngine(engine=engine, loop=EngineLoop(engine), backend=backend, draft_backend=None, load_s=0.0)
