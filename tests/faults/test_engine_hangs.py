"""F2: an engine process that is stopped, or whose step never ends, is killed, and its streams go on elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from support.answers import ask, assert_solo
from support.fake_engine import CONFIG
from support.faults import KillAt, start_fake, take_all
from tuili.runtime.supervision.supervised_engine import RestartPolicy

# A hang is found after as many seconds as these say; with TUILI_DEFAULT_LIMITS=1 after those of a server.
if os.environ.get("TUILI_DEFAULT_LIMITS"):
    SILENT = STUCK = RestartPolicy()
else:
    SILENT = RestartPolicy(unready_s=2.0, silence_s=4.0, look_every_s=0.05)
    STUCK = RestartPolicy(hang_timeout_s=1.0, look_every_s=0.05)
REQUESTS = [ask(f"r{i}", range(3 + i), temperature=0.8, n=2, seed=i, max_tokens=60) for i in range(8)]


async def test_a_stopped_engine_is_unready_then_killed_and_its_streams_go_on(tmp_path: Path) -> None:
    engine = await start_fake(tmp_path, SILENT)
    stopped = engine.facts.process_id
    stop = KillAt(engine, 40, signal.SIGSTOP)
    taking = asyncio.create_task(take_all(engine, REQUESTS, stop))
    states: list[str] = []
    while not taking.done():
        if stop.is_done and engine.facts.process_id == stopped and states[-1:] != [engine.health.state]:
            states.append(engine.health.state)
        await asyncio.sleep(0.01)
    for request, answers in zip(REQUESTS, taking.result(), strict=True):
        assert_solo(answers, request, CONFIG.max_model_len)
    assert (states[0], states[-1]) == ("ready", "restarting")
    assert set(states[1:-1]) >= {"silent"}  # and ready, if this process was held up, too, and forgave the other
    assert engine.facts.process_id != stopped
    await engine.aclose()


async def test_a_step_that_never_ends_is_a_hang_though_the_heart_beats(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It tells where it hangs before it ends."""
    engine = await start_fake(tmp_path, STUCK, hangs_once=tmp_path / "hung")
    for request, answers in zip(REQUESTS, await take_all(engine, REQUESTS), strict=True):
        assert_solo(answers, request, CONFIG.max_model_len)
    assert engine.health.num_restarts >= 1  # a machine that is busy enough lets others look hung
    told = capfd.readouterr().err
    assert "most recent call first" in told
    assert "fake_backend.py" in told or "fake_engine.py" in told
    await engine.aclose()


async def test_a_long_step_that_is_work_is_no_hang(tmp_path: Path) -> None:
    engine = await start_fake(tmp_path, RestartPolicy(hang_timeout_s=2.5, look_every_s=0.05), works_on=7)
    (answers,) = await take_all(engine, [ask("r", [7], max_tokens=1)])
    assert_solo(answers, ask("r", [7], max_tokens=1), CONFIG.max_model_len)
    assert engine.health.num_restarts == 0
    await engine.aclose()


async def test_a_stopped_engine_can_be_closed(tmp_path: Path) -> None:
    engine = await start_fake(tmp_path)
    os.kill(engine.facts.process_id, signal.SIGSTOP)
    await engine.aclose(grace_s=0.05)
    assert engine.health.state == "closed"
