"""`tuili serve` as people run it: a process that says where it is, answers, drains, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support import assets
from support.gguf_models import seeds
from support.serve_process import ServerProcess, serve_process

from .test_serve import make_certificate

MODEL = "smollm2:135m"
LONG = {"model": MODEL, "prompt": "Count: 1 2 3", "max_tokens": 4000, "ignore_eos": True, "stream": True}


PATIENCE_S = 240.0


def have_ended(process_ids: list[int]) -> bool:
    """Once they were waited for."""
    left = [psutil.Process(i) for i in process_ids if psutil.pid_exists(i)]
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    return not alive


def data_of(line: str) -> Any:
    """What a line of a stream holds."""
    assert line.startswith("data: "), line
    return json.loads(line.removeprefix("data: "))


def data_lines(answer: httpx.Response) -> Iterator[str]:
    return (line for line in answer.iter_lines() if line.startswith("data: "))


def await_line(server: ServerProcess, text: str) -> None:
    """Returns when the server has said it."""
    until_s = time.monotonic() + PATIENCE_S
    while not any(text in line for line in server.lines):
        assert time.monotonic() < until_s, server.lines
        time.sleep(0.01)


def await_listener(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Returns when somebody listens on the unix socket."""
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(path))
            return
        time.sleep(0.01)
    raise AssertionError(f"it ended with {process.returncode}")


@contextmanager
def running_stream(server: ServerProcess, **changes: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream, of which some have come."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | changes, timeout=PATIENCE_S) as answer:
        assert answer.status_code == 200
        lines = data_lines(answer)
        for _ in range(3):
            next(lines)
        yield lines


@pytest.fixture
def home(smollm2_gguf: Path) -> Path:
    assert smollm2_gguf.is_file()
    return assets.store_dir()


def test_a_server_answers_on_all_its_addresses_and_drains(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(f'models = ["{MODEL}"]\nserved-model-name = ["main", "gpt-4"]\nollama = true\nstrict = true\n')
    arguments = ("--config", str(config), "--ollama-host", "127.0.0.1:0", "--max-num-seqs", "4")
    with serve_process(*arguments, home=home, log=tmp_path / "log") as server:
        assert server.served == "main"
        assert len(set(server.urls)) == 2
        for url in server.urls:
            assert httpx.get(f"{url}/ready", timeout=PATIENCE_S).json() == {"status": "ready", "models": ["main"]}
        for name in ("main", "gpt-4", "smollm2", MODEL):
            body = {"model": name, "prompt": "Hi", "max_tokens": 1}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S)
            assert (answer.status_code, answer.json()["model"]) == (200, name)
        unknown = {"model": "none", "prompt": "Hi"}
        answer = httpx.post(f"{server.url}/v1/completions", json=unknown, timeout=PATIENCE_S)
        assert (answer.status_code, "does not exist" in answer.text) == (404, True)
        engines = server.children()
        assert len(engines) == 1
        os.kill(engines[0], signal.SIGSTOP)  # so that the answer, and with it the server, does not end too soon
        asked = LONG | {"model": "main", "max_tokens": 20}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=PATIENCE_S) as stream:
            assert stream.status_code == 200
            server.process.send_signal(signal.SIGTERM)
            await_line(server, "tuili ends when running answers have")
            refused = httpx.get(f"{server.url}/ready", timeout=PATIENCE_S)
            answer = httpx.post(f"{server.url}/v1/completions", json=unknown | {"model": "main"}, timeout=PATIENCE_S)
            os.kill(engines[0], signal.SIGCONT)
            assert refused.status_code == 503
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            *_, last, end = data_lines(stream)
        assert end == "data: [DONE]"
        assert data_of(last)["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
        assert have_ended(engines)
        log = (tmp_path / "log").read_text().splitlines()
        assert {json.loads(line)["path"] for line in log} == {"/ready", "/v1/completions"}


def test_a_signal_while_models_load_ends_at_once(home: Path) -> None:
    command = [sys.executable, "-m", "tuili.cli.main", "serve", MODEL, "--port", "0"]
    environ = os.environ | {"TUILI_HOME": str(home)}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    engines: list[int] = []
    while not engines:
        assert process.poll() is None
        engines = [child.pid for child in psutil.Process(process.pid).children()]
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert have_ended(engines)


def test_at_the_drains_deadline_answers_are_told(home: Path) -> None:
    with serve_process(MODEL, "--drain-timeout", "300ms", home=home) as server:
        with running_stream(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            *_, last = lines
        assert "shutting down" in data_of(last)["error"]["message"]
        assert server.wait() == 0


def test_a_second_signal_does_not_wait(home: Path) -> None:
    with serve_process(MODEL, "--drain-timeout", "1h", home=home) as server:
        engines = server.children()
        with running_stream(server) as lines:
            server.process.send_signal(signal.SIGINT)
            await_line(server, "again ends it now")
            server.process.send_signal(signal.SIGINT)
            *_, last = lines
        assert "error" in data_of(last)
        assert server.wait() == 128 + signal.SIGINT
        assert have_ended(engines)


def _ask(server: ServerProcess, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "Hi", "max_tokens": 1, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S)


def test_a_server_goes_on_without_a_model_that_is_given_up_and_ends_with_the_last(home: Path, tmp_path: Path) -> None:
    (tmp_path / "second.gguf").write_bytes(seeds()["llama"].encode())
    killed: set[int] = set()

    def kill_all_but(spared: list[int]) -> None:
        for child in set(server.children()) - {*spared, *killed}:
            killed.add(child)
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)

    with serve_process(MODEL, str(tmp_path / "second.gguf"), home=home) as server:
        _, second = server.children()
        until_s = time.monotonic() + PATIENCE_S
        while (ready := httpx.get(f"{server.url}/ready", timeout=PATIENCE_S).json()).get("unready") != {
            MODEL: "the engine is failed"
        }:
            assert time.monotonic() < until_s, ready
            kill_all_but([second])
        assert ready["models"] == ["second"]
        refused = _ask(server, MODEL)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert "it is tried again every 30 s" in refused.json()["error"]["message"]
        assert _ask(server, "second").status_code == 200
        while server.process.poll() is None:
            assert time.monotonic() < until_s
            kill_all_but([])
        assert server.wait() == 70
        assert any("is given up" in line for line in server.lines)
        assert have_ended(list(killed))


def test_a_unix_socket_and_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serve_process("--uds", "socket", home=tmp_path / "home") as server:
        assert server.urls == ["unix:socket"]
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660
        transport = httpx.HTTPTransport(uds="socket")
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as client:
            assert client.get("/health").json() == {"status": "ok"}
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not (tmp_path / "socket").exists()
    make_certificate(tmp_path)
    with serve_process("--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", home=tmp_path / "home") as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile="cert.pem")
        assert httpx.get(f"{server.url}/ready", verify=context, timeout=PATIENCE_S).status_code == 200


def test_the_application_under_another_host(tmp_path: Path) -> None:
    environ = os.environ | {"TUILI_HOME": str(tmp_path), "TUILI_SERVE_STRICT": "1", "TUILI_SERVE_LOG_REQUESTS": "0"}
    command = [sys.executable, "-m", "uvicorn", "--factory", "tuili.server:create_app", "--uds", "socket"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environ, stdout=quiet, stderr=quiet, cwd=tmp_path)
    try:
        await_listener(tmp_path / "socket", process)
        transport = httpx.HTTPTransport(uds=str(tmp_path / "socket"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as client:
            assert client.get("/ready").status_code == 200
            assert client.get("/v1/models").json()["data"] == []
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
