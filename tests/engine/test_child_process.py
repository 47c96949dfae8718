"""The carrier to an engine process, over a fake backend in a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import uvloop

from support import fake_engine
from support.answers import Answers, ask, assert_solo
from tuili.beam_search_params import BeamSearchParams
from tuili.engine import child_process
from tuili.engine.child_process import ChildProcess
from tuili.engine.wire import Load
from tuili.errors import ContextLengthError, EngineUnavailableError, InsufficientMemoryError, InvalidRequestError
from tuili.runtime.loading.loading import LoadOptions
from tuili.types import Resume, TokenRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one child for most of them
PROMPT = list(range(20))
CONTEXT = fake_engine.CONFIG.max_model_len


async def started(folder: Path, **faults: object) -> ChildProcess:
    model = folder / "model"
    model.touch()
    options = msgspec.Raw(msgspec.msgpack.encode(LoadOptions()))
    return await ChildProcess.start(fake_engine.command(**faults), Load(str(model), options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def child(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChildProcess]:
    child = await started(tmp_path_factory.mktemp("model"))
    yield child
    await child.aclose()


async def collect(child: ChildProcess, request: TokenRequest) -> Answers:
    answers = Answers()
    async for deltas in child.generate(request):
        for delta in deltas:
            answers(delta)
    return answers


async def test_many_streams_are_what_they_would_be_alone(child: ChildProcess) -> None:
    requests = [ask(f"r{i}", PROMPT[i:], n=3, temperature=0.9, seed=i, logprobs=1) for i in range(10)]
    for answers, request in zip(await asyncio.gather(*(collect(child, r) for r in requests)), requests, strict=True):
        assert_solo(answers, request, CONTEXT)
    assert child._streams == {}
    assert child.health.is_ready


async def test_what_the_engine_is_told_with_the_facts(child: ChildProcess) -> None:
    facts = child.facts
    assert (facts.process_id, facts.vocab_size, facts.max_model_len) == (child.process.pid, 61, CONTEXT)
    assert facts.cache_bytes == facts.num_blocks[0] > 0
    assert facts.capacity == facts.num_blocks[0] * facts.block_size


async def test_a_request_that_cannot_be_is_refused_before_anything_is_sent(child: ChildProcess) -> None:
    for request, kind in (
        (ask("r", [1] * 300), ContextLengthError),
        (ask("r", [99]), InvalidRequestError),
        (ask("r", [1], logits_processors=[max]), InvalidRequestError),
    ):
        with pytest.raises(kind):
            await collect(child, request)
    assert child._streams == {}


async def test_an_id_in_use_ends_in_an_error_that_leaves_the_first_alone(child: ChildProcess) -> None:
    request = ask("same", PROMPT, max_tokens=60)
    first, second = await asyncio.gather(collect(child, request), collect(child, request))
    assert_solo(first, request, CONTEXT)
    assert isinstance(second.last("same").error, InvalidRequestError)


async def test_an_answer_that_is_aborted_leaves_the_others(child: ChildProcess) -> None:
    request, answers = ask("r", PROMPT, n=3, temperature=1.0, max_tokens=200), Answers()
    async for deltas in child.generate(request):
        for delta in deltas:
            answers(delta)
        child.abort("r", 1)
    assert answers.reason("r", 1) == "abort"
    assert answers.reason("r", 0) == answers.reason("r", 2) == "length"


async def test_leaving_a_stream_frees_what_it_held(tmp_path: Path) -> None:
    child = await started(tmp_path, step_s=0.01)
    async with aclosing(child.generate(ask("r", PROMPT, max_tokens=230))) as steps:
        await anext(steps)
    short = ask("next", PROMPT, max_tokens=2)
    assert_solo(await collect(child, short), short, CONTEXT)
    beats = child.heartbeat
    while child.heartbeat is beats or child.stats().num_running:
        await asyncio.sleep(0.02)
    assert child.stats().num_free_blocks == child.stats().num_blocks
    assert child.stats().num_output_tokens < 200
    await child.aclose()


async def test_a_cache_gives_up_what_it_never_touched_and_gets_it_back(child: ChildProcess) -> None:
    full = child.facts.cache_bytes
    running = asyncio.create_task(collect(child, ask("r", PROMPT, n=3, max_tokens=60, temperature=0.5)))
    small = await child.resize_cache(0)
    assert CONTEXT // child.facts.block_size <= small < full
    assert child.facts.cache_bytes == small
    assert_solo(await running, ask("r", PROMPT, n=3, max_tokens=60, temperature=0.5), CONTEXT)
    assert (await collect(child, ask("long", [1] * (CONTEXT - 1)))).reason("long") == "length"
    while child.stats().num_blocks != (small,):
        await asyncio.sleep(0.05)
    assert await child.resize_cache(2 * full) == full


async def test_a_resize_ends_with_the_process(tmp_path: Path) -> None:
    child = await started(tmp_path)
    full = child.facts.cache_bytes
    os.kill(child.process.pid, signal.SIGSTOP)
    resizing = asyncio.create_task(child.resize_cache(0))
    await asyncio.sleep(0)
    child.close()
    assert await resizing == full
    assert await child.resize_cache(0) == full


async def test_a_request_is_resumed_in_another_process(child: ChildProcess) -> None:
    request = ask("r", PROMPT, temperature=0.9, n=2, max_tokens=20, presence_penalty=0.5)
    whole = await collect(child, request)
    places = {0: Resume(tuple(whole.tokens("r", 0)[:13])), 1: Resume(tuple(whole.tokens("r", 1)[:4]))}
    rest = await collect(child, replace(request, resume=places))
    for index, place in places.items():
        assert [*place.token_ids, *rest.tokens("r", index)] == whole.tokens("r", index)


async def test_beams_come_through(child: ChildProcess) -> None:
    request = replace(ask("r", PROMPT, n=2, temperature=1.0), beam_search=BeamSearchParams(beam_width=2, max_tokens=6))
    answers = await collect(child, request)
    for index in range(2):
        last = answers.last("r", index)
        assert last.beam is not None
        assert len(last.beam.logprobs) == len(last.token_ids) > 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_child_that_dies_ends_every_answer(tmp_path: Path, how: signal.Signals) -> None:
    child = await started(tmp_path, step_s=0.01)
    gone = asyncio.Event()
    child.on_lost = lambda _: gone.set()
    tasks = [asyncio.create_task(collect(child, ask(f"r{i}", PROMPT, max_tokens=200))) for i in range(4)]
    while not child._streams:
        await asyncio.sleep(0)
    os.kill(child.process.pid, how)
    for i, answers in enumerate(await asyncio.gather(*tasks)):
        assert isinstance(answers.last(f"r{i}").error, EngineUnavailableError)
    assert gone.is_set()
    assert child.process.returncode == -how
    assert child.health.state == "closed"
    with pytest.raises(EngineUnavailableError):
        await collect(child, ask("late", PROMPT))


async def test_loading_that_fails_raises_what_it_failed_with(tmp_path: Path) -> None:
    log = tmp_path / "starts"
    log.write_bytes(b"..")
    with pytest.raises(InsufficientMemoryError, match="12 GiB, 3 GiB are free"):
        await started(tmp_path, fails_from=log)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.write(fd, b'\\xff\\xff\\xff\\xff'); sock.recv(1 << 20); os.read(fd, 1)", "4294967295 bytes"),
        ("import os; os.write(fd, b'\\0\\0\\0\\3abc'); sock.recv(1 << 20); os.read(fd, 1)", "no message"),
        ("raise SystemExit(3)", None),
        ("sock.close(); import time; time.sleep(60)", None),
    ],
)
async def test_a_child_that_talks_nonsense_or_leaves_is_ended(
    program: str, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    head = "import socket, sys; fd = int(sys.argv[1]); sock = socket.socket(fileno=fd); "
    load = Load("model", msgspec.Raw(msgspec.msgpack.encode({})))
    with pytest.raises(EngineUnavailableError, match="ended while it loaded"):
        await ChildProcess.start([sys.executable, "-c", head + program], load)
    assert (words or "") in caplog.text


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes that were started."""
    processes: list[subprocess.Popen[bytes]] = []
    spawn = child_process._spawn
    monkeypatch.setattr(child_process, "_spawn", lambda *given: processes.append(spawn(*given)) or processes[-1])
    return processes


@pytest.mark.parametrize("num_turns", [0, 1, 5])
async def test_a_start_that_is_cancelled_again_and_again_waits_for_the_process(
    spawned: list[subprocess.Popen[bytes]], num_turns: int
) -> None:
    load = Load("model", msgspec.Raw(msgspec.msgpack.encode({})))
    starting = asyncio.create_task(ChildProcess.start([sys.executable, "-c", "import time; time.sleep(60)"], load))
    while not spawned:
        await asyncio.sleep(0)
    for _ in range(3):
        for _ in range(num_turns):
            await asyncio.sleep(0)
        starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [process.returncode for process in spawned] == [-signal.SIGKILL]


@pytest.mark.parametrize("num_turns", [0, 1])
async def test_a_start_that_is_cancelled_as_it_connects_ends_in_the_server_s_loop(
    spawned: list[subprocess.Popen[bytes]], num_turns: int
) -> None:
    async def cancelled() -> bool:
        load = Load("model", msgspec.Raw(msgspec.msgpack.encode({})))
        starting = asyncio.create_task(ChildProcess.start([sys.executable, "-c", "import time; time.sleep(60)"], load))
        while not spawned:
            await asyncio.sleep(0)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting], timeout=60)
        return starting.cancelled()

    def run() -> bool:
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(cancelled())
        finally:
            loop.close()

    assert await asyncio.to_thread(run)
    assert [process.returncode for process in spawned] == [-signal.SIGKILL]


async def test_closing_that_is_cancelled_ends_the_process_all_the_same(tmp_path: Path) -> None:
    child = await started(tmp_path)
    os.kill(child.process.pid, signal.SIGSTOP)
    closing = asyncio.create_task(child.aclose(grace_s=600))
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert child.process.returncode == -signal.SIGKILL


async def test_a_command_that_cannot_be_started_leaves_no_socket(tmp_path: Path) -> None:
    load = Load("model", msgspec.Raw(msgspec.msgpack.encode({})))
    with pytest.raises(FileNotFoundError) as raised:
        await ChildProcess.start([str(tmp_path / "none")], load)
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    (ours,) = [names["ours"] for names in frames if "ours" in names]
    assert ours.fileno() == -1


async def test_closing_waits_for_the_process_and_may_come_twice(tmp_path: Path) -> None:
    child = await started(tmp_path)
    task = asyncio.create_task(collect(child, ask("r", PROMPT, max_tokens=230)))
    await asyncio.sleep(0)
    await child.aclose()
    assert child.process.returncode == 0
    assert isinstance((await task).last("r").error, EngineUnavailableError)
    await child.aclose()


async def test_a_stopped_child_is_silent_and_closes_all_the_same(tmp_path: Path) -> None:
    now = [0.0]
    (tmp_path / "model").touch()
    load = Load(str(tmp_path / "model"), msgspec.Raw(msgspec.msgpack.encode(LoadOptions())))
    child = await ChildProcess.start(fake_engine.command(), load, clock=lambda: now[0])
    os.kill(child.process.pid, signal.SIGSTOP)
    assert child.health.is_ready
    now[0] = 5.5
    health = child.health
    assert (health.is_ready, health.state, health.heartbeat_age_s) == (False, "silent", 5.5)
    await child.aclose(grace_s=0.05)
    assert child.process.returncode == -signal.SIGKILL
