"""A GPU whose driver ends all computing of a process: the engine's process ends, and another goes on, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.answers import ask, assert_solo
from support.fake_engine import CONFIG
from support.faults import start_fake, take_all

REQUESTS = [ask(f"r{i}", range(3 + i), temperature=0.8, n=1 + i % 2, seed=i, max_tokens=30) for i in range(5)]


async def test_streams_go_on_in_a_new_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = await start_fake(tmp_path, loses_device_once=tmp_path / "failed")
    first = engine.facts.process_id
    for request, answers in zip(REQUESTS, await take_all(engine, REQUESTS), strict=True):
        assert_solo(answers, request, CONFIG.max_model_len)
    assert engine.health.num_restarts == 1
    assert engine.facts.process_id != first
    assert f"engine process {first} ended (exit code 71, its device failed) with 5 requests" in caplog.text
    await engine.aclose()
