"""What the supervisor makes of engines that die: over children that are objects of this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from support.answers import ask
from support.faults import FACTS
from tuili.beam_search_params import BeamSearchParams
from tuili.engine.client import Stream
from tuili.engine.stats import EngineStats
from tuili.engine.wire import EngineFacts
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, InvalidRequestError, TuiliError
from tuili.runtime.supervision.flight import INNOCENT, Flight
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine
from tuili.types import Resume, TokenDelta, TokenRequest

IDLE = EngineStats(
    num_running=0,
    num_waiting=0,
    num_blocks=(8,),
    num_free_blocks=(8,),
    num_steps=3,
    num_preemptions=0,
    num_prefix_queries=0,
    num_prefix_hits=0,
    num_computed_tokens=0,
    num_output_tokens=10,
    num_draft_tokens=0,
    num_accepted_tokens=0,
)


class Child:
    """Does what the test says, and keeps what it was asked."""

    heartbeat = None
    exit_text = "signal 9"

    def __init__(self) -> None:
        self.facts = FACTS
        self.on_lost: Callable[[Child], None] | None = None
        self.is_gone = self.has_told = False
        self.silence_s = self.stall_s = self.idle_s = 0.0
        self.streams: dict[int, Stream] = {}
        self.asked: list[TokenRequest] = []
        self.aborted: list[tuple[str, int | None]] = []

    def check_request(self, request: TokenRequest) -> None:
        if 60 in request.prompt_token_ids:
            raise InvalidRequestError("no 60")

    def submit(self, stream: Stream, request: TokenRequest) -> int:
        self.asked.append(request)
        self.streams[len(self.asked)] = stream
        return len(self.asked)

    def drop(self, number: int) -> None:
        del self.streams[number]

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))

    def stats(self) -> EngineStats:
        return IDLE

    def pardon(self) -> None:
        self.silence_s = self.stall_s = 0.0

    def say(self, request_id: str, *token_ids: int, index: int = 0, **fields: object) -> None:
        delta = TokenDelta(request_id=request_id, index=index, token_ids=token_ids, **fields)  # type: ignore[arg-type]
        number, stream = next((n, s) for n, s in self.streams.items() if s.request.request_id == request_id)
        stream.put([delta])
        if not stream.unfinished:
            self.streams.pop(number, None)

    def die(self) -> None:
        self.is_gone = True
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.lose(EngineUnavailableError("gone"))
        if self.on_lost is not None:
            self.on_lost(self)

    def close_telling(self) -> None:
        self.has_told = True
        self.close()

    def close(self) -> None:
        if not self.is_gone:
            self.die()

    async def aclose(self, grace_s: float = 0.0) -> None:
        self.close()


class Nursery:
    """Starts children, or fails to; holds the next one back where told."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, facts: EngineFacts | None) -> Child:
        assert (facts is None) == (not self.children)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.children.append(Child())
        return self.children[-1]

    async def engine(self, **policy: float) -> SupervisedEngine:
        return await SupervisedEngine.start(self, policy=RestartPolicy(**policy))  # type: ignore[arg-type]


@pytest.fixture
def nursery() -> Nursery:
    return Nursery()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def collect(engine: SupervisedEngine, request: TokenRequest) -> list[TokenDelta]:
    return [delta async for deltas in engine.generate(request) for delta in deltas]


def begin(engine: SupervisedEngine, request: TokenRequest) -> asyncio.Task[list[TokenDelta]]:
    return asyncio.ensure_future(collect(engine, request))


async def test_what_was_told_is_not_asked_for_again(nursery: Nursery) -> None:
    engine = await nursery.engine()
    request = ask("r", [1], n=3, temperature=1.0, prompt_logprobs=1, max_tokens=9)
    task = begin(engine, request)
    await settle()
    nursery.children[0].say("r", 5, 6, prompt_logprobs=(None,), sampler_state=2.5)
    nursery.children[0].say("r", 7, index=1, finish_reason="length")
    nursery.children[0].die()
    await settle()
    (rest,) = nursery.children[1].asked
    assert rest.resume == {0: Resume((5, 6), 2.5), 2: Resume(())}
    assert rest.sampling.prompt_logprobs is None
    nursery.children[1].say("r", 8, finish_reason="stop")
    nursery.children[1].say("r", 9, index=2, finish_reason="stop")
    assert [(delta.index, delta.token_ids) for delta in await task] == [(0, (5, 6)), (1, (7,)), (0, (8,)), (2, (9,))]
    await engine.aclose()


async def test_what_nothing_was_told_of_starts_over(nursery: Nursery) -> None:
    engine = await nursery.engine()
    beams = replace(ask("b", [1], n=2, temperature=1.0), beam_search=BeamSearchParams(beam_width=2, max_tokens=3))
    requests = [beams, ask("r", [1], prompt_logprobs=1), replace(ask("s", [1]), resume={0: Resume((4,))})]
    tasks = [begin(engine, request) for request in requests]
    await settle()
    nursery.children[0].die()
    await settle()
    assert nursery.children[1].asked == requests
    await engine.aclose()
    for deltas in await asyncio.gather(*tasks):
        assert isinstance(deltas[-1].error, EngineUnavailableError)


async def test_requests_that_come_while_it_restarts_wait(nursery: Nursery) -> None:
    engine = await nursery.engine()
    nursery.gate.clear()
    nursery.children[0].die()
    task = begin(engine, ask("r", [1]))
    await settle()
    assert (engine.health.state, engine.stats().num_waiting, engine.stats().num_output_tokens) == ("restarting", 1, 10)
    with pytest.raises(InvalidRequestError):
        await collect(engine, ask("refused", [60]))
    nursery.gate.set()
    await settle()
    nursery.children[1].say("r", 3, finish_reason="length")
    assert [delta.token_ids for delta in await task] == [(3,)]
    assert (engine.health.state, engine.stats().num_output_tokens) == ("ready", 20)
    await engine.aclose()
    assert engine.stats().num_output_tokens == 20


async def test_an_abort_reaches_whoever_has_the_request(nursery: Nursery) -> None:
    engine = await nursery.engine()
    task = begin(engine, ask("r", [1], n=3, temperature=1.0))
    await settle()
    engine.abort("r", 1)
    assert nursery.children[0].aborted == [("r", 1)]
    nursery.gate.clear()
    nursery.children[0].die()  # before it could say so
    engine.abort("r", 0)
    nursery.gate.set()
    await settle()
    assert nursery.children[1].asked[0].resume == {2: Resume(())}
    nursery.children[1].say("r", 4, index=2, finish_reason="length")
    assert [(delta.index, delta.finish_reason) for delta in await task] == [(1, "abort"), (0, "abort"), (2, "length")]
    await engine.aclose()


async def test_leaving_while_it_restarts_leaves_nothing(nursery: Nursery) -> None:
    engine = await nursery.engine()
    task = begin(engine, ask("r", [1]))
    await settle()
    nursery.gate.clear()
    nursery.children[0].die()
    task.cancel()
    await settle()
    nursery.gate.set()
    await settle()
    assert nursery.children[1].asked == []
    assert engine._flights == {}
    await engine.aclose()


async def test_after_three_restarts_without_a_token_it_is_given_up_and_tried_again_later(nursery: Nursery) -> None:
    engine = await nursery.engine(retry_after_s=0.5)
    nursery.failures = [InsufficientMemoryError("no room")] * 2 + [OSError("no process")]
    task = begin(engine, ask("r", [1]))
    await settle()
    nursery.children[0].die()
    (failed,) = await task
    assert isinstance(failed.error, EngineUnavailableError)
    assert engine.health.state == "failed"
    with pytest.raises(
        EngineUnavailableError, match=r"cannot be restarted: no process; it is tried again every 0\.5 s"
    ):
        await collect(engine, ask("late", [1]))
    nursery.gate.clear()
    while engine.health.state == "failed":
        await asyncio.sleep(0.01)
    assert (engine.health.state, engine.is_given_up) == ("restarting", True)  # until it is back
    nursery.gate.set()
    task = begin(engine, ask("r", [1]))
    await settle()
    assert not engine.is_given_up
    nursery.children[1].say("r", 3, finish_reason="length")
    assert (await task)[0].token_ids == (3,)
    await engine.aclose()


async def test_an_engine_that_keeps_dying_but_brings_tokens_is_always_restarted(nursery: Nursery) -> None:
    engine = await nursery.engine()
    task = begin(engine, ask("r", [1], max_tokens=100))
    for i in range(8):
        await settle()
        for _ in range(INNOCENT if i % 2 else 1):
            nursery.children[-1].say("r", i)
        nursery.children[-1].die()
    await settle()
    assert len(nursery.children) == 9
    nursery.children[-1].say("r", 60, finish_reason="length")
    assert (await task)[-1].token_ids == (60,)
    await engine.aclose()


async def test_suspects_are_tried_one_at_a_time_while_everybody_else_waits(nursery: Nursery) -> None:
    engine = await nursery.engine()
    tasks = {name: begin(engine, ask(name, [1], max_tokens=100)) for name in "abc"}
    for _ in range(2):
        await settle()
        nursery.children[-1].die()
    await settle()
    child = nursery.children[-1]
    running = lambda: [s.request.request_id for s in child.streams.values()]  # noqa: E731
    tasks["new"] = begin(engine, ask("new", [1]))
    await settle()
    assert running() == ["a"]
    child.say("a", 1)
    assert running() == ["b"]
    engine.abort("b")
    assert child.aborted == [("b", None)]
    child.say("b", finish_reason="abort")
    assert running() == ["c"]
    child.die()
    await settle()
    (failed,) = await tasks["c"]
    assert type(failed.error) is TuiliError
    child = nursery.children[-1]
    assert sorted(running()) == ["a", "new"]
    assert child.asked[0].resume == {0: Resume((1,))}
    await engine.aclose()


async def test_silent_and_stalled_children_are_killed_once(nursery: Nursery, caplog: pytest.LogCaptureFixture) -> None:
    engine = await nursery.engine(look_every_s=0.001, silence_s=10, hang_timeout_s=60)
    nursery.children[0].silence_s = 6.0
    assert engine.health.state == "silent"
    nursery.children[0].silence_s = 11.0
    while len(nursery.children) < 2:
        await asyncio.sleep(0.001)
    nursery.children[1].stall_s = 899.0  # at work
    assert engine.health.is_ready
    nursery.children[1].idle_s = 31.0
    assert engine.health.state == "stalled"
    assert not engine.health.is_ready
    nursery.children[1].idle_s = 61.0
    while len(nursery.children) < 3:
        await asyncio.sleep(0.001)
    nursery.children[2].stall_s = 1801.0
    while len(nursery.children) < 4:
        await asyncio.sleep(0.001)
    assert "gave no sign of life for 11.0 s" in caplog.text
    assert "has work and did nothing for 61.0 s" in caplog.text
    assert "finished no step for 1801.0 s" in caplog.text
    assert [child.has_told for child in nursery.children] == [False, True, True, False]  # who is silent cannot
    await engine.aclose()


async def test_who_stood_still_does_not_blame_the_child(nursery: Nursery) -> None:
    """As when both were stopped by Ctrl-Z, or the machine was suspended."""
    engine = await nursery.engine(look_every_s=0.01, silence_s=0.5)
    await asyncio.sleep(0)  # the supervisor sleeps until its next look
    nursery.children[0].silence_s = nursery.children[0].stall_s = 99.0
    time.sleep(1.2)
    await asyncio.sleep(0.05)
    assert engine.health.state == "ready"
    assert len(nursery.children) == 1
    await engine.aclose()


async def test_closing_while_it_restarts_ends_everything(nursery: Nursery) -> None:
    engine = await nursery.engine()
    task = begin(engine, ask("r", [1]))
    await settle()
    nursery.gate.clear()
    nursery.children[0].die()
    await engine.aclose()
    assert isinstance((await task)[-1].error, EngineUnavailableError)
    with pytest.raises(EngineUnavailableError, match="closed"):
        await collect(engine, ask("late", [1]))
    assert len(nursery.children) == 1


def test_a_flight_s_rest_of_a_rest() -> None:
    flight = Flight(replace(ask("r", [1], n=2, temperature=1.0), resume={1: Resume((4,), 1.5)}), lambda *_: None)
    flight.put([TokenDelta(request_id="r", index=1, token_ids=(5,))])
    assert flight.rest().resume == {1: Resume((4, 5), 1.5)}
