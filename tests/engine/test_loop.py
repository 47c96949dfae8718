"""The engine in its thread, and the asynchronous client over it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import NoReturn

import pytest

from support.answers import Answers, ask, assert_solo, make_engine
from support.fake_backend import VOCAB, solo
from support.gated_backend import GatedBackend
from tuili.backend import Batch
from tuili.engine.client import InProcess
from tuili.engine.engine import Engine
from tuili.engine.loop import EngineLoop
from tuili.errors import (
    ContextLengthError,
    DeviceFailureError,
    EngineUnavailableError,
    InvalidRequestError,
    TuiliError,
)
from tuili.types import TokenDelta, TokenRequest

PROMPT = [(5 * i + 1) % VOCAB for i in range(20)]


@dataclass
class Waiting:
    """A sink another thread can wait on."""

    answers: Answers = field(default_factory=Answers)
    unfinished: int = 1
    done: threading.Event = field(default_factory=threading.Event)
    threads: set[str] = field(default_factory=set)

    def __call__(self, delta: TokenDelta) -> None:
        self.answers(delta)
        self.threads.add(threading.current_thread().name)
        self.unfinished -= delta.finish_reason is not None
        if not self.unfinished:
            self.done.set()

    def wait(self) -> Answers:
        assert self.done.wait(240)
        return self.answers


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    loop = EngineLoop(make_engine())
    yield loop
    loop.close()
    assert not loop._thread.is_alive()


def close_while_computing(loop: EngineLoop, backend: GatedBackend) -> None:
    """Closes the loop during a step, which ends only then."""
    closing = threading.Thread(target=loop.close)
    closing.start()
    while loop._open:
        closing.join(0.001)
    backend.gate.release(100)
    closing.join(30)


def test_requests_from_many_threads(loop: EngineLoop) -> None:
    requests = [ask(f"r{i}", PROMPT[i:], n=2, temperature=0.8, seed=i) for i in range(8)]
    sinks = [Waiting(unfinished=2) for _ in requests]
    threads = [threading.Thread(target=loop.submit, args=pair) for pair in zip(requests, sinks, strict=True)]
    for thread in threads:
        thread.start()
    for thread, request, sink in zip(threads, requests, sinks, strict=True):
        thread.join()
        assert_solo(sink.wait(), request)
        assert sink.threads == {"tuili-engine"}


def test_bad_requests_raise_in_the_caller(loop: EngineLoop) -> None:
    sink = Waiting()
    with pytest.raises(InvalidRequestError, match="got 61"):
        loop.submit(ask("r", [VOCAB]), sink)
    with pytest.raises(ContextLengthError, match="128 tokens"):
        loop.submit(ask("r", [1] * 128), sink)
    assert sink.answers.deltas == {}


def test_a_request_id_in_use_ends_in_an_error_delta() -> None:
    backend = GatedBackend()
    loop = EngineLoop(make_engine(backend))
    first, second = Waiting(), Waiting(unfinished=2)
    loop.submit(ask("r", PROMPT), first)
    loop.submit(ask("r", PROMPT, n=2, temperature=1.0), second)
    backend.gate.release(100)
    assert_solo(first.wait(), ask("r", PROMPT))
    assert [str(second.wait().last("r", i).error) for i in range(2)] == ["request_id 'r' is already in use"] * 2
    loop.close()


def test_abort_from_outside() -> None:
    backend = GatedBackend()
    loop = EngineLoop(make_engine(backend))
    sink, other = Waiting(), Waiting()
    loop.submit(ask("r", PROMPT, max_tokens=50), sink)
    loop.submit(ask("other", PROMPT, max_tokens=5), other)
    backend.gate.release()
    loop.abort("r")
    loop.abort("unknown", 3)
    backend.gate.release(100)
    assert sink.wait().reason("r") == "abort"
    assert_solo(other.wait(), ask("other", PROMPT, max_tokens=5))
    loop.close()
    loop.abort("r")


def test_what_the_engine_s_thread_reads_by_itself_is_asked_in_order() -> None:
    loop, sinks = EngineLoop(make_engine()), [Waiting() for _ in range(3)]
    asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
    waits: list[bool] = []

    def receive(is_waiting: bool) -> None:
        waits.append(is_waiting)
        assert threading.current_thread() is loop._thread
        with suppress(Empty):
            asked.get(is_waiting, 60)()

    def submit(number: int) -> None:
        loop.submit(ask(f"r{number}", PROMPT[number:]), sinks[number])

    def refuse() -> None:
        with pytest.raises(InvalidRequestError, match="got 61"):
            loop.submit(ask("bad", [VOCAB]), sinks[1])

    for command in (partial(submit, 0), refuse, partial(submit, 1), partial(loop.abort, "r1")):
        asked.put(command)
    serving = threading.Thread(target=loop.serve, args=(receive,))
    serving.start()
    assert_solo(sinks[0].wait(), ask("r0", PROMPT))
    assert sinks[1].wait().reason("r1") == "abort"
    asked.put(partial(submit, 2))
    assert_solo(sinks[2].wait(), ask("r2", PROMPT[2:]))
    asked.put(loop.close)
    serving.join(60)
    assert not serving.is_alive()
    assert set(waits) == {True, False}  # it looked for more between steps, and slept when there were none


def test_an_idle_loop_sleeps(loop: EngineLoop) -> None:
    sink = Waiting()
    loop.submit(ask("r", PROMPT), sink)
    sink.wait()
    checks = []
    loop._engine.check = lambda: checks.append(1)  # type: ignore[method-assign]
    clock_of = getattr(time, "pthread_getcpuclockid", lambda _: time.CLOCK_PROCESS_CPUTIME_ID)
    clock = clock_of(loop._thread.ident)
    used = time.clock_gettime(clock)
    assert not threading.Event().wait(0.5)
    assert time.clock_gettime(clock) - used < 0.1  # a loop that spins takes all that it gets
    assert len(checks) <= 1
    assert loop.stats().num_output_tokens == 16


def test_close_ends_running_and_arriving_requests() -> None:
    backend = GatedBackend()
    loop = EngineLoop(make_engine(backend, max_num_seqs=1))
    sinks = [Waiting(unfinished=n) for n in (1, 2)]
    loop.submit(ask("a", PROMPT, max_tokens=50), sinks[0])
    loop.submit(ask("b", PROMPT, n=2, temperature=1.0), sinks[1])
    close_while_computing(loop, backend)
    for sink, name, index in [(sinks[0], "a", 0), (sinks[1], "b", 0), (sinks[1], "b", 1)]:
        error = sink.wait().last(name, index).error
        assert isinstance(error, EngineUnavailableError)
        assert str(error) == "the engine is closed"
    with pytest.raises(EngineUnavailableError):
        loop.submit(ask("c", PROMPT), Waiting())
    loop.close()


def test_an_internal_error_ends_everything_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    backend = GatedBackend()
    engine = make_engine(backend, max_num_seqs=1)
    loop, sinks = EngineLoop(engine), [Waiting() for _ in range(3)]

    def break_down() -> None:
        raise AssertionError("blocks do not add up")

    for i, sink in enumerate(sinks):
        loop.submit(ask(f"r{i}", PROMPT), sink)
    engine._scheduler.schedule = break_down  # type: ignore[method-assign, assignment]
    backend.gate.release(100)
    for i, sink in enumerate(sinks):
        error = sink.wait().last(f"r{i}").error
        assert str(error) == "the engine stopped after an internal error"
    assert "blocks do not add up" in caplog.text
    loop._thread.join(30)
    with pytest.raises(EngineUnavailableError):
        loop.submit(ask("c", PROMPT), Waiting())
    loop.close()


def test_a_command_that_fails_loses_nothing_that_came_behind_it() -> None:
    loop, sink, held, told = EngineLoop(make_engine()), Waiting(), threading.Event(), threading.Event()
    loop.add_listener(told.set)

    def fail(_: int) -> NoReturn:
        raise AssertionError("blocks do not add up")

    loop._send(lambda: None if held.wait(60) else fail(0))
    for _ in range(2):
        loop.resize_cache(0, fail)
    loop.submit(ask("r", PROMPT), sink)
    held.set()
    assert sink.done.wait(60)
    assert isinstance(sink.answers.last("r").error, EngineUnavailableError)
    assert told.wait(60)
    loop.close()


def test_a_device_that_failed_ends_everything_and_is_named_to_whoever_comes_later() -> None:
    backend = GatedBackend()
    loop, sinks = EngineLoop(make_engine(backend, max_num_seqs=1)), [Waiting() for _ in range(3)]

    def fail(batch: Batch) -> NoReturn:
        raise DeviceFailureError("cuda:0 failed")

    for i, sink in enumerate(sinks):
        loop.submit(ask(f"r{i}", PROMPT), sink)
    backend.execute = fail  # type: ignore[method-assign]
    backend.gate.release(100)
    for i, sink in enumerate(sinks):
        error = sink.wait().last(f"r{i}").error
        assert isinstance(error, DeviceFailureError)
    loop._thread.join(30)
    assert isinstance(loop.failure, DeviceFailureError)
    with pytest.raises(DeviceFailureError, match="cuda:0 failed"):
        loop.submit(ask("c", PROMPT), Waiting())
    loop.close()


def test_a_request_the_engine_chokes_on_is_refused_alone(loop: EngineLoop, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Waiting(), Waiting()
    loop.submit(ask("other", PROMPT), good)
    loop.submit(ask("r", PROMPT, salt=b"bytes"), bad)  # type: ignore[arg-type]
    error = bad.wait().last("r").error
    assert type(error) is TuiliError
    assert str(error) == "the request could not be queued"
    assert_solo(good.wait(), ask("other", PROMPT))


async def _collect(client: InProcess, request: TokenRequest) -> Answers:
    answers = Answers()
    async for deltas in client.generate(request):
        for delta in deltas:
            answers(delta)
    return answers


async def test_in_process_streams_many_requests(loop: EngineLoop) -> None:
    client = InProcess(loop)
    requests = [ask(f"r{i}", PROMPT[i:], n=3, temperature=0.9, seed=i) for i in range(10)]
    for answers, request in zip(await asyncio.gather(*(_collect(client, r) for r in requests)), requests, strict=True):
        assert_solo(answers, request)
    assert client._mailboxes == {}
    assert client.stats().num_waiting == 0
    with pytest.raises(ContextLengthError):
        await _collect(client, ask("long", [1] * 200))


async def test_closing_the_iterator_aborts() -> None:
    backend = GatedBackend()
    engine = make_engine(backend)
    client = InProcess(EngineLoop(engine))
    request = ask("r", PROMPT, n=2, temperature=1.0, max_tokens=90)
    backend.gate.release(3)
    async with aclosing(client.generate(request)) as steps:
        async for deltas in steps:
            if any(delta.index == 1 for delta in deltas):
                break
    backend.gate.release(5)
    assert_solo(await _collect(client, ask("next", PROMPT, max_tokens=2)), ask("next", PROMPT, max_tokens=2))
    assert not engine.has_work()
    assert backend.num_steps < 10
    client.close()


async def test_abort_of_one_answer_leaves_the_stream_to_the_others() -> None:
    backend = GatedBackend()
    client, request = InProcess(EngineLoop(make_engine(backend))), ask("r", PROMPT, n=3, temperature=1.0, max_tokens=60)
    answers = Answers()
    backend.let(10)  # fewer steps than an answer takes
    async for deltas in client.generate(request):
        for delta in deltas:
            answers(delta)
        if deltas[0].token_ids and not answers.reason("r", 1):
            client.abort("r", 1)
            backend.let()
    client.close()
    assert answers.reason("r", 1) == "abort"
    for index in (0, 2):
        assert (answers.tokens("r", index), answers.reason("r", index)) == solo(request, index, 128)


async def test_deltas_of_one_step_come_with_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = GatedBackend()
    client = InProcess(EngineLoop(make_engine(backend)))
    event_loop = asyncio.get_running_loop()
    wake_ups, plain = [], event_loop.call_soon_threadsafe

    def counted(callback: object, *args: object) -> object:
        wake_ups.append(callback)
        return plain(callback, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(event_loop, "call_soon_threadsafe", counted)
    tasks = [asyncio.create_task(_collect(client, ask(f"r{i}", PROMPT, max_tokens=5))) for i in range(16)]
    await asyncio.sleep(0)
    backend.gate.release(100)
    await asyncio.gather(*tasks)
    assert len(wake_ups) <= backend.num_steps < 10  # for 80 deltas
    client.close()


async def test_a_closed_engine_ends_streams_with_an_error() -> None:
    backend = GatedBackend()
    loop = EngineLoop(make_engine(backend))
    client = InProcess(loop)
    task = asyncio.create_task(_collect(client, ask("r", PROMPT)))
    await asyncio.sleep(0)
    await asyncio.to_thread(close_while_computing, loop, backend)
    answers = await task
    assert isinstance(answers.last("r").error, EngineUnavailableError)
    with pytest.raises(EngineUnavailableError):
        await _collect(client, ask("late", PROMPT))


def test_one_client_serves_several_event_loops_one_after_another() -> None:
    client = InProcess(EngineLoop(make_engine()))
    for i in range(3):
        request = ask(f"r{i}", PROMPT)
        assert_solo(asyncio.run(_collect(client, request)), request)
    client.close()


def test_an_event_loop_that_went_away_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    backend = GatedBackend()
    engine: Engine = make_engine(backend)
    client = InProcess(EngineLoop(engine))

    async def leave() -> None:
        stream = client.generate(ask("gone", PROMPT, max_tokens=90))
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    backend.gate.release(100)
    request = ask("next", PROMPT)
    assert_solo(asyncio.run(_collect(client, request)), request)
    client.close()
    assert not engine.has_work()
