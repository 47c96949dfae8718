"""A model's file goes, grows short or becomes another while it is served: who is served does not notice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gguf_models import seeds
from support.serve_process import ServerProcess, serve_process

NUM_STREAMS = 4
GREEDY = {"temperature": 0, "max_tokens": 40, "ignore_eos": True, "stream": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def original() -> bytes:
    return seeds()["llama"].encode()


@pytest.fixture(scope="module")
def model(folder: Path, original: bytes) -> Path:
    path = folder / "tiny.gguf"
    path.write_bytes(original)
    return path


@pytest.fixture(scope="module")
def server(folder: Path, model: Path) -> Iterator[ServerProcess]:
    arguments = (str(model), "--served-model-name", "tiny", "--max-num-seqs", "8", "--num-threads", "1")
    with serve_process(*arguments, home=folder / "home") as server:
        yield server


def _removed(model: Path) -> None:
    model.unlink()


def _replaced(model: Path) -> None:
    other = model.with_name("other")
    other.write_bytes(b"GGUF" + bytes(1000))
    other.rename(model)


def _overwritten(model: Path) -> None:
    with model.open("r+b") as file:
        file.write(bytes(model.stat().st_size))


def _emptied(model: Path) -> None:
    os.truncate(model, 0)


def _cut(model: Path) -> None:
    os.truncate(model, model.stat().st_size // 2)


def _asked(server: ServerProcess, prompt: str) -> list[str]:
    """The lines of an answer, without what differs between two."""
    body = {"model": "tiny", "prompt": prompt, **GREEDY}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=240)
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    assert '"error"' not in answer.text
    return [line for line in answer.text.splitlines() if "token_ids" in line]


def _ids(lines: list[str]) -> list[int]:
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    return [i for choice in choices for i in choice.get("token_ids") or ()]


def _running(server: ServerProcess) -> int:
    return len(httpx.get(f"{server.url}/v1/requests", timeout=60).json()["data"])


@pytest.mark.parametrize("change", [_removed, _replaced, _overwritten, _emptied, _cut])
def test_what_becomes_of_a_served_file(
    server: ServerProcess, model: Path, original: bytes, change: Callable[[Path], None]
) -> None:
    prompts = [f"hello world {i}" for i in range(NUM_STREAMS)]
    wanted = [_ids(_asked(server, prompt)) for prompt in prompts]
    assert [len(ids) for ids in wanted] == [40] * NUM_STREAMS
    (engine,) = server.children()
    with ThreadPoolExecutor(NUM_STREAMS) as pool:  # the engine is held while the file changes under its requests
        os.kill(engine, signal.SIGSTOP)
        try:
            answers = [pool.submit(_asked, server, prompt) for prompt in prompts]
            until_s = time.monotonic() + 240
            while _running(server) < NUM_STREAMS:
                assert time.monotonic() < until_s
            change(model)
        finally:
            os.kill(engine, signal.SIGCONT)
        assert [_ids(answer.result()) for answer in answers] == wanted
    assert _ids(_asked(server, prompts[0])) == wanted[0]  # and so does what comes later
    assert server.children() == [engine]
    _unload(server)
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a"}, timeout=240)
    assert refused.status_code in (400, 404), refused.text
    message: str = refused.json()["error"]["message"]
    assert "tiny" in message
    assert str(model.parent) not in message
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    shown = httpx.post(f"{server.url}/api/show", json={"model": "tiny"}, timeout=60)
    assert shown.status_code == refused.status_code
    assert server.process.poll() is None
    model.write_bytes(original)  # put back, it is served again
    assert _ids(_asked(server, prompts[0])) == wanted[0]


def _unload(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/v1/models/unload", json={"model": "tiny"}, timeout=240)
    assert answer.status_code == 200, answer.text


def test_a_context_that_changes_loads_nothing_again(server: ServerProcess) -> None:
    """Nor do other options that load a model anew elsewhere."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        (path, {"model": "tiny", "options": {"num_ctx": context, **options}, **body})
        for context, options in ((24, {}), (64, {"num_batch": 64}), (128, {"num_thread": 1}), (32, {"num_gpu": 0}))
        for path, body in (
            ("/api/generate", {"prompt": "hello", "raw": True, "stream": False}),
            ("/v1/completions", {"prompt": "hello", "max_tokens": 2}),
        )
    ]
    httpx.post(f"{server.url}/v1/models/load", json={"model": "tiny"}, timeout=240)
    (before,) = server.children()
    for path, body in bodies:
        answer = httpx.post(f"{server.url}{path}", json=body, timeout=240)
        assert answer.status_code == 200, answer.text
    assert server.children() == [before]
    assert 'tuili:engine_restarts_total{model_name="tiny"} 0.0' in httpx.get(f"{server.url}/metrics", timeout=60).text
