"""F4: kill -9 of the process that holds an engine. The engine's ends too: nothing is left that holds memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.fake_engine import TESTS

PARENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.answers import ask
from support.faults import start_fake

async def main():
    engine = await start_fake(Path({folder!r}), step_s=0.01)
    print(engine.facts.process_id, flush=True)
    async for _ in engine.generate(ask("r", [1, 2], max_tokens=200)):
        print("token", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("is_stopped", [False, True])
def test_no_engine_outlives_its_parent(tmp_path: Path, is_stopped: bool) -> None:
    program = PARENT.format(tests=str(TESTS), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "token\n"
        if is_stopped:
            os.kill(child, signal.SIGSTOP)
        parent.kill()
    deadline = time.monotonic() + 240
    while _runs(child):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.01)


def _runs(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
