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
from support.faults import FACTS, collect, start_fake
from tuili.engine.stats import EngineHealth
from tuili.errors import EngineUnavailableError
from tuili.runtime.replicas.replicated_engine import ReplicatedEngine
from tuili.runtime.supervision.flight import Flight
from tuili.runtime.supervision.supervised_engine import RestartPolicy
from tuili.types import TokenDelta, TokenRequest

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
    """The engines are held meanwhile, so that none can be done before."""
    process_ids = [replica.facts.process_id for replica in pair.replicas]
    for process_id in process_ids:
        os.kill(process_id, signal.SIGSTOP)
    asked = [ask(f"a{i}", [i, 2], max_tokens=200, ignore_eos=True) for i in range(4)]
    running = [asyncio.create_task(collect(pair, request)) for request in asked]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    for request in asked:
        pair.abort(request.request_id)
    for process_id in process_ids:
        os.kill(process_id, signal.SIGCONT)
    answers = await asyncio.wait_for(asyncio.gather(*running), 60)
    assert {found.reason(request.request_id) for request, found in zip(asked, answers, strict=True)} == {"abort"}


class Replica:
    """Does what the test says, and keeps what it was asked."""

    on_given_up = None

    def __init__(self) -> None:
        self.facts = FACTS
        self.state, self.is_given_up = "ready", False
        self.streams: list[Flight] = []

    @property
    def health(self) -> EngineHealth:
        return EngineHealth(is_ready=self.state == "ready", state=self.state)

    def check_request(self, _: TokenRequest) -> None:
        if self.state == "failed":
            raise EngineUnavailableError("the engine is failed")

    def generate(self, request: TokenRequest) -> Flight:
        self.streams.append(Flight(request, lambda *_: None))
        return self.streams[-1]

    def abort(self, request_id: str, index: int | None = None) -> None:
        for stream in self.streams:
            stream.abort(index)

    def say_last(self, index: int) -> None:
        delta = TokenDelta(request_id="r", index=index, token_ids=(6,), finish_reason="length")
        self.streams[-1].put([delta])

    def give_up(self) -> None:
        self.state, self.is_given_up = "failed", True
        for stream in self.streams:
            stream.end("error", EngineUnavailableError("the engine fails again and again"))


@pytest.mark.parametrize("index", [0, None])
async def test_what_is_aborted_as_its_replica_is_given_up_is_not_asked_of_another(index: int | None) -> None:
    first, second = Replica(), Replica()
    pair = ReplicatedEngine([first, second])  # type: ignore[list-item]
    answers, request = Answers(), ask("r", [1], n=2, temperature=1.0)
    steps = pair.generate(request)
    first.streams[0].put([TokenDelta(request_id="r", index=i, token_ids=(5,)) for i in range(2)])
    for delta in await anext(steps):
        answers(delta)
    first.give_up()
    pair.abort("r", index)
    async with asyncio.timeout(60):
        async for deltas in steps:
            for delta in deltas:
                answers(delta)
            if index is not None and not second.streams:
                asyncio.get_running_loop().call_later(0.001, second.say_last, 1)
    assert answers.reason("r", 0) == "abort"
    assert answers.reason("r", 1) == ("abort" if index is None else "length")
    assert [sorted(stream.request.resume or ()) for stream in second.streams] == ([] if index is None else [[1]])
    assert pair._passages == {}


async def test_while_all_are_given_up_the_one_that_is_tried_again_gets_what_comes() -> None:
    replicas = [Replica() for _ in range(3)]
    trio = ReplicatedEngine(replicas)  # type: ignore[arg-type]
    for replica in replicas:
        replica.give_up()
    with pytest.raises(EngineUnavailableError, match="failed"):
        trio.generate(ask("r", [1]))
    replicas[1].state = "restarting"
    await trio.generate(ask("r", [1])).aclose()
    assert [len(replica.streams) for replica in replicas] == [0, 1, 0]
