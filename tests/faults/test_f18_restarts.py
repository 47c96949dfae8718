"""F18: the server is restarted again and again under clients that know nothing but their defaults: none hears of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import openai
import pytest

from support.gguf_models import seeds
from support.serve_process import ServerProcess, serve_process

NUM_RESTARTS = int(os.environ.get("TUILI_RESTARTS", "3"))
PROMPTS = [f"hello world {number}" for number in range(6)]  # one for each client
Start = Callable[[], AbstractContextManager[ServerProcess]]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """The port, which outlives every server on it."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield listener


@pytest.fixture
def start(tmp_path: Path, listener: socket.socket) -> Start:
    (tmp_path / "tiny.gguf").write_bytes(seeds()["llama"].encode())
    arguments = [str(tmp_path / "tiny.gguf"), "--port", str(listener.getsockname()[1]), "--num-threads", "1"]
    return lambda: serve_process(*arguments, home=tmp_path / "home", listener=listener)


def _said(client: openai.OpenAI, prompt: str, *, streams: bool) -> list[int]:
    """The tokens of an answer that is drawn by its seed."""
    extra = {"return_token_ids": True, "ignore_eos": True}
    asked = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "temperature": 0.8, "seed": 5, "extra_body": extra}
    answers = client.completions.create(**asked, stream=True) if streams else [client.completions.create(**asked)]  # type: ignore[call-overload]
    return [i for answer in answers for choice in answer.choices for i in getattr(choice, "token_ids", None) or ()]


class Clients:
    """One thread each, that asks until told to stop, half of them for streams. `counts` has their whole answers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.counts = [0] * len(PROMPTS)
        self._threads = ThreadPoolExecutor(len(PROMPTS))
        self._asking: list[Future[None]] = []

    def begin(self) -> None:
        """Each expects what it hears when nobody else is there."""
        with openai.OpenAI(base_url=self._url, api_key="none") as client:
            wanted = [_said(client, prompt, streams=False) for prompt in PROMPTS]
        assert {len(tokens) for tokens in wanted} == {40}
        self._asking = [self._threads.submit(self._ask, *pair) for pair in enumerate(wanted)]

    def _ask(self, number: int, wanted: list[int]) -> None:
        with openai.OpenAI(base_url=self._url, api_key="none", timeout=120) as client:
            while not self._stop.is_set():
                assert _said(client, PROMPTS[number], streams=number % 2 == 0) == wanted
                self.counts[number] += 1

    def until(self, is_enough: Callable[[list[int], list[int]], bool]) -> None:
        """Waits until the counts, and what they were, are so; raises what went wrong for any client."""
        before, until_s = list(self.counts), time.monotonic() + 120
        while not is_enough(self.counts, before):
            for asking in self._asking:
                if asking.done():
                    asking.result()
            assert time.monotonic() < until_s
            time.sleep(0.005)

    def end(self) -> None:
        self._stop.set()
        self._threads.shutdown()
        for asking in self._asking:
            asking.result()


def _each_one_more(counts: list[int], before: list[int]) -> bool:
    return all(now > was for now, was in zip(counts, before, strict=True))


def test_restarts_under_load_are_seen_by_no_client(start: Start, listener: socket.socket) -> None:
    """Answers that run end in the drain; who comes then is told when to come again; who comes later waits."""
    clients = Clients(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    try:
        for number in range(NUM_RESTARTS + 1):
            with start() as server:
                if number == 0:
                    clients.begin()
                if number % 2:
                    clients.until(lambda counts, before: sum(counts) > sum(before))
                else:  # so that no request meets three servers that end: its clients try thrice
                    clients.until(_each_one_more)
                if number < NUM_RESTARTS:
                    server.process.send_signal(signal.SIGTERM)
                    assert server.wait() == 0
                else:
                    clients.end()
    except BaseException:
        listener.close()  # who waits for a server that never comes
        raise
    finally:
        clients.end()
