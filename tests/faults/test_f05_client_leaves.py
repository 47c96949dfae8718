"""F5: a client closes, resets, half-closes or stops reading, whatever its request is at: all it held is free again
within a step, and the others' tokens are the same.
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import httpx
import pytest

from support.fake_backend import solo
from support.gated_backend import GatedBackend
from support.plain_dialect import plain_dialect
from support.served import Listening, PooledModel, listening
from support.small_model import small_model, small_tokenizer
from tuili.types import SamplingParams, TokenRequest

PROMPT = "abcdefgh" * 15  # three steps of at most 64 tokens, when 8 of another come first
OTHER = "ijklmnop"
MAX_NOTICE_S = 0.25
NUM_LEAVERS = int(os.environ.get("TUILI_LEAVERS", "60"))


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening(spoken=(plain_dialect(),), send_timeout_s=0.3, keep_alive_interval_s=0.1) as server:
        yield server


@pytest.fixture
def backend(server: Listening) -> Iterator[GatedBackend]:
    """Of a model that only this test uses."""
    backend = GatedBackend()
    pipeline = small_model(backend)
    server.pool.models["small"] = PooledModel(pipeline)
    yield backend
    backend.let()
    until(lambda: server.app.state.serving.running() == (), "all should have ended")
    pipeline.close()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 240) -> float:
    """Waits for it; the seconds it took."""
    begun_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begun_s < timeout_s, what
        time.sleep(0.001)
    return time.monotonic() - begun_s


def ask(server: Listening, **fields: object) -> socket.socket:
    """A request that has been sent."""
    body = json.dumps({"max_tokens": 8, **fields}).encode()
    connection = server.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    head = f"POST /plain/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    return connection


def fin(connection: socket.socket) -> None:
    connection.close()


def rst(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def read_no_more(connection: socket.socket) -> None:
    """Who has read until now."""


class Reader:
    """Reads what comes to a client until it is told not to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._is_told = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_told:
            if select.select([self._connection], [], [], 0.005)[0] and not self._connection.recv(1 << 16):
                return

    def stop(self) -> None:
        self._is_told = True
        self._thread.join()


def num_parts(server: Listening, phase: str) -> int:
    serving = server.app.state.serving
    return sum(part.phase == phase for answering in serving.running() for part in answering.parts)


def victim_phase(server: Listening) -> str | None:
    """Told by its prompt, which no other has."""
    parts = [part for answering in server.app.state.serving.running() for part in answering.parts]
    return next((part.phase for part in parts if part.request.prompt == PROMPT), None)


def num_held(server: Listening) -> int:
    stats = server.pool.models["small"].client.stats()
    return sum(stats.num_blocks) - sum(stats.num_free_blocks)


def expected(prompt: str, max_tokens: int) -> list[int]:
    ids = tuple(small_tokenizer().encode(prompt))
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return solo(TokenRequest(request_id="", prompt_token_ids=ids, sampling=sampling, seed=7), 0, 128)[0]


class Background:
    """Others' requests meanwhile."""

    def __init__(self, server: Listening, count: int) -> None:
        self.answers: list[list[int]] = []
        self._threads = [threading.Thread(target=self._ask, args=(server.host, server.port)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, host: str, port: int) -> None:
        body = json.dumps({"prompts": [OTHER], "max_tokens": 16})
        connection = HTTPConnection(host, port, timeout=240)
        connection.request("POST", "/plain/generate", body, {"content-type": "application/json"})
        self.answers.append(json.loads(connection.getresponse().read())["0.0"])
        connection.close()

    def assert_exact(self) -> None:
        for thread in self._threads:
            thread.join(240)
        assert self.answers == [expected(OTHER, 16)] * len(self._threads)


def reach(
    server: Listening, backend: GatedBackend, phase: str, fields: dict[str, object]
) -> tuple[socket.socket, Reader]:
    """A victim that is in `phase`, whose next step waits at the gate."""
    connection = ask(server, prompts=[PROMPT], **fields)
    reader = Reader(connection)
    if phase == "queued":
        until(lambda: victim_phase(server) == "queue", "it should wait")
        return connection, reader
    until(lambda: victim_phase(server) == "prefill", "it should be taken")
    steps = {"prefill": 2, "decode": 6}[phase]
    for step in range(1, steps + 1):
        until(lambda step=step: backend.num_begun >= step, "a step should begin")  # type: ignore[misc]
        backend.let(1)
    until(lambda: backend.num_begun > steps, "the next step should begin")
    until(lambda: victim_phase(server) == phase, f"it should be in {phase}")
    return connection, reader


PHASES = pytest.mark.parametrize(
    ("phase", "fields"),
    [("queued", {}), ("prefill", {}), ("decode", {}), ("decode", {"n": 3, "temperature": 1.0})],
    ids=["queued", "prefill", "decode", "n=3"],
)
LEAVING: list[tuple[Callable[[socket.socket], None], bool]] = [
    *((leave, streams) for leave in (fin, rst, half_close) for streams in (True, False)),
    (read_no_more, True),  # who waits for a whole answer has nothing to read before it is computed
]


@PHASES
@pytest.mark.parametrize(
    ("leave", "streams"), LEAVING, ids=lambda value: value.__name__ if callable(value) else str(value)
)
def test_what_it_held_is_free_within_a_step(
    server: Listening,
    backend: GatedBackend,
    leave: Callable[[socket.socket], None],
    phase: str,
    fields: dict[str, object],
    streams: bool,
) -> None:
    others = Background(server, 8 if phase == "queued" else 1)
    until(lambda: num_parts(server, "prefill") == len(others._threads), "the others should be taken")
    padding = 1 << 18 if leave is read_no_more else 0  # of each token and each sign of life
    connection, reader = reach(server, backend, phase, {**fields, "stream": streams, "padding": padding})
    num_running = len(server.app.state.serving.running())
    reader.stop()
    leave(connection)
    begun = backend.num_begun
    until(lambda: len(server.app.state.serving.running()) < num_running, "it should be noticed")
    assert backend.num_begun == begun
    backend.let(1)
    until(lambda: backend.num_begun > begun, "the others should go on")
    assert num_held(server) <= (4 if phase == "queued" else 1)  # a block for each other that runs
    backend.let()
    others.assert_exact()
    assert_nothing_is_held(server)
    connection.close()


def assert_nothing_is_held(server: Listening) -> None:
    until(lambda: num_held(server) == 0, "nothing should be held")
    serving = server.app.state.serving
    assert (serving.admission.num_queued, serving.admission.num_queued_tokens) == (0, 0)
    until(lambda: server.pool.models["small"].num_active == 0, "nobody should use the model")


@PHASES
def test_who_does_not_read_a_whole_answer_is_let_go(
    server: Listening, backend: GatedBackend, phase: str, fields: dict[str, object]
) -> None:
    """Its tokens are computed, as nobody can know; then it holds nothing of the engine, and soon no memory."""
    others = Background(server, 8 if phase == "queued" else 1)
    until(lambda: num_parts(server, "prefill") == len(others._threads), "the others should be taken")
    connection, reader = reach(server, backend, phase, {**fields, "padding": 1 << 23})
    reader.stop()
    backend.let()
    others.assert_exact()
    assert_nothing_is_held(server)
    until(lambda: _is_reset(connection), "it should be let go")
    connection.close()


def _is_reset(connection: socket.socket) -> bool:
    """Without reading: that would be reading."""
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def test_leaving_is_noticed_at_once(server: Listening, backend: GatedBackend) -> None:
    """While a step is computed. The median, beside what the least of answers takes: a busy machine lets all wait."""
    noticed_s, answered_s = [], []
    for number in range(15):
        connection = ask(server, prompts=[PROMPT], stream=number % 2 == 0)
        until(lambda: victim_phase(server) == "prefill", "it should be taken")
        (fin, rst, half_close)[number % 3](connection)
        noticed_s.append(until(lambda: len(server.app.state.serving.running()) == 0, "it should be noticed"))
        connection.close()
        begun_s = time.monotonic()
        assert httpx.get(f"{server.url}/health", timeout=240).status_code == 200
        answered_s.append(time.monotonic() - begun_s)
    assert statistics.median(noticed_s) < max(MAX_NOTICE_S, 5 * statistics.median(answered_s))


@pytest.mark.parametrize("leave", [fin, rst, half_close])
def test_who_has_asked_for_more_behind_it_may_leave_too(
    server: Listening, backend: GatedBackend, leave: Callable[[socket.socket], None]
) -> None:
    """Whose first request runs; the others are never begun."""
    body = json.dumps({"prompts": [PROMPT], "max_tokens": 8}).encode()
    head = f"POST /plain/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    connection = server.connect()
    connection.sendall((f"{head}content-type: application/json\r\n\r\n".encode() + body) * 3)
    until(lambda: victim_phase(server) == "prefill", "it should be taken")
    leave(connection)
    until(lambda: len(server.app.state.serving.running()) == 0, "it should be noticed", 60)
    connection.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "blocking"])
def test_who_waits_for_a_model_may_leave_too(server: Listening, backend: GatedBackend, stream: bool) -> None:
    loop = server.app.state.serving.starting.get_loop()
    until(lambda: server.app.state.serving.is_started, "it should start")
    loop.call_soon_threadsafe(server.pool.gate.clear)
    connection = ask(server, prompts=[PROMPT], stream=stream)
    until(lambda: server.app.state.serving.admission.num_queued == 1, "it should wait for its model")
    connection.close()
    until(lambda: server.app.state.serving.admission.num_queued == 0, "it should be forgotten")
    loop.call_soon_threadsafe(server.pool.gate.set)
    backend.let()
    Background(server, 1).assert_exact()


def _read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def test_who_does_not_read_is_let_go(server: Listening, backend: GatedBackend) -> None:
    backend.let()
    counts = server.app.state.request_log.counts
    before = counts["POST", "/plain/generate", 499]
    connection = ask(server, prompts=["abc"], max_tokens=100, stream=True, padding=1 << 16)
    others = Background(server, 2)
    until(lambda: len(server.app.state.serving.running()) == 0, "it should be let go")
    others.assert_exact()
    until(lambda: num_held(server) == 0, "nothing should be held")
    until(lambda: counts["POST", "/plain/generate", 499] == before + 1, "it should be counted")
    with pytest.raises(ConnectionError):  # reset, not kept half open
        _read_all(connection)
    connection.close()


def test_many_leave_at_random_and_nothing_is_lost(server: Listening, backend: GatedBackend) -> None:
    """Permits trickle in, so that clients leave in every phase."""
    others = Background(server, 3)
    for number in range(NUM_LEAVERS):
        fields = {"n": 2, "temperature": 1.0} if number % 5 == 0 else {}
        connection = ask(server, prompts=[PROMPT], stream=number % 2 == 0, **fields)
        if number % 4:
            backend.let(number % 4)
        (fin, rst, half_close)[number % 3](connection)
        connection.close()
    backend.let()
    others.assert_exact()
    until(lambda: len(server.app.state.serving.running()) == 0, "all should have ended")
    until(lambda: num_held(server) == 0, "nothing should be held")
    assert server.app.state.serving.pacer.num_streams == 0
    Background(server, 2).assert_exact()
