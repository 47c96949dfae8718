"""Two engines as one: whatever happens to one of them, every stream is whole, and the other one goes on serving."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from support import fake_engine
from support.answers import Answers, ask
from support.fake_backend import solo
from support.faults import collect, start_fake
from tuili.errors import EngineUnavailableError
from tuili.runtime.replicas.replicated_engine import ReplicatedEngine
from tuili.runtime.supervised_engine import RestartPolicy
from tuili.types import TokenRequest

PATIENT = RestartPolicy(silence_s=120, hang_timeout_s=240)
CONTEXT = fake_engine.CONFIG.max_model_len


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[ReplicatedEngine]:
    engines = await asyncio.gather(*(start_fake(_folder(tmp_path, i), PATIENT, step_s=0.005) for i in range(2)))
    pair = ReplicatedEngine(engines)
    yield pair
    await pair.aclose()


def _folder(path: Path, i: int) -> Path:
    folder = path / str(i)
    folder.mkdir()
    return folder


def requests(count: int, max_tokens: int = 24) -> list[TokenRequest]:
    kinds: list[dict[str, object]] = [{}, {"temperature": 0.8}, {"temperature": 1.0, "n": 2}]
    return [
        ask(f"r{i}", [(i * k) % 61 for k in range(5 + i)], seed=i, max_tokens=max_tokens, **kinds[i % 3])  # type: ignore[arg-type]
        for i in range(count)
    ]


def assert_whole(asked: Sequence[TokenRequest], answers: Sequence[Answers]) -> None:
    for request, found in zip(asked, answers, strict=True):
        for index in request.indexes:
            told = (found.tokens(request.request_id, index), found.reason(request.request_id, index))
            assert told == solo(request, index, CONTEXT)


async def test_both_answer_and_are_counted_together(pair: ReplicatedEngine) -> None:
    asked = requests(8)
    assert_whole(asked, await asyncio.gather(*(collect(pair, request) for request in asked)))  # type: ignore[arg-type]
    parts = [replica.facts for replica in pair.replicas]
    assert len({facts.process_id for facts in parts}) == 2
    assert pair.facts.cache_bytes == sum(facts.cache_bytes for facts in parts)
    assert pair.stats().num_blocks == tuple(2 * n for n in parts[0].num_blocks)
    async with asyncio.timeout(60):
        while min(replica.stats().num_output_tokens for replica in pair.replicas) == 0:
            await asyncio.sleep(0.01)  # until heartbeats tell
    assert pair.health.is_ready


async def test_one_is_killed_and_the_other_one_serves_meanwhile(pair: ReplicatedEngine) -> None:
    victim = pair.replicas[0]
    asked = requests(6, max_tokens=40)
    seen = asyncio.Event()
    running = [asyncio.create_task(collect(pair, request, lambda _: seen.set())) for request in asked]  # type: ignore[arg-type]
    await asyncio.wait_for(seen.wait(), 60)
    os.kill(victim.facts.process_id, signal.SIGKILL)
    async with asyncio.timeout(60):
        while victim.health.state == "ready":
            await asyncio.sleep(0.001)
    assert pair.health.is_ready
    late = ask("late", [1, 2, 3], max_tokens=4)
    answers = await collect(pair, late)  # type: ignore[arg-type]
    assert_whole([late], [answers])
    assert_whole(asked, await asyncio.gather(*running))
    async with asyncio.timeout(120):
        while not victim.health.is_ready:
            await asyncio.sleep(0.01)
    assert pair.health.num_restarts == 1


async def test_what_a_lost_one_leaves_undone_the_other_one_finishes(tmp_path: Path) -> None:
    given_up = RestartPolicy(max_restarts=0, silence_s=120, hang_timeout_s=240)
    engines = [await start_fake(_folder(tmp_path, i), given_up, step_s=0.005) for i in range(2)]
    pair = ReplicatedEngine(engines)
    told: list[str] = []
    pair.on_given_up = lambda: told.append("all")
    asked = requests(6, max_tokens=40)
    seen = asyncio.Event()
    running = [asyncio.create_task(collect(pair, request, lambda _: seen.set())) for request in asked]  # type: ignore[arg-type]
    await asyncio.wait_for(seen.wait(), 60)
    os.kill(engines[0].facts.process_id, signal.SIGKILL)
    assert_whole(asked, await asyncio.wait_for(asyncio.gather(*running), 120))
    assert (engines[0].is_given_up, pair.is_given_up, told) == (True, False, [])
    os.kill(engines[1].facts.process_id, signal.SIGKILL)
    async with asyncio.timeout(60):
        while not pair.is_given_up:
            await asyncio.sleep(0.001)
    assert told == ["all"]
    with pytest.raises(EngineUnavailableError, match="the engine"):
        pair.check_request(asked[0])
    assert not pair.health.is_ready
    await pair.aclose()


async def test_answers_are_aborted_wherever_they_are(pair: ReplicatedEngine) -> None:
    asked = [ask(f"a{i}", [i, 2], max_tokens=200, ignore_eos=True) for i in range(4)]
    answers = [Answers() for _ in asked]

    async def take(request: TokenRequest, into: Answers) -> None:
        async for deltas in pair.generate(request):
            for delta in deltas:
                into(delta)
            pair.abort(request.request_id)

    async with asyncio.timeout(60):
        await asyncio.gather(*(take(request, into) for request, into in zip(asked, answers, strict=True)))
    assert {into.reason(request.request_id) for request, into in zip(asked, answers, strict=True)} == {"abort"}
