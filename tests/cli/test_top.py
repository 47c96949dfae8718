"""`tuili top` at a terminal, against a server whose engine takes the steps it is told to."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from support.gated_backend import GatedBackend
from support.served import Listening, SmallPool, listening
from support.small_model import small_model
from support.terminal import CTRL_Z, Terminal, in_terminal

CHUNK = 64  # of small_model's engine
LONG = "a" * 1000
ENTERED, LEFT, HOME = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H"
COMMAND = [sys.executable, "-m", "tuili.cli.main", "top"]


@contextmanager
def top_of(server: Listening, folder: Path) -> Iterator[Terminal]:
    environment = {"TUILI_HOST": f"127.0.0.1:{server.port}", "NO_COLOR": "1", "TERM": "xterm", "NO_PROXY": "127.0.0.1"}
    environment |= {"COLUMNS": "80", "LINES": "24"}  # as some programs export them once and for all
    with in_terminal([*COMMAND, "--interval", "0.2"], folder, environment) as terminal:
        terminal.resize(200, 40)
        yield terminal


@pytest.fixture
def backend() -> GatedBackend:
    return GatedBackend()


@pytest.fixture
def server(backend: GatedBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setattr("tuili.engine.scheduler.LONG_PREFILL_S", -1.0)  # every prefill is a long one
    with listening(pool=SmallPool(small_model(backend, max_model_len=2048))) as server:
        yield server
        backend.let()


def test_it_shows_what_a_request_goes_through_fits_the_window_and_leaves_at_q(
    server: Listening, backend: GatedBackend, tmp_path: Path
) -> None:
    body = {"model": "small", "prompt": LONG, "max_tokens": 900, "ignore_eos": True}
    asking = threading.Thread(target=lambda: httpx.post(f"{server.url}/v1/completions", json=body, timeout=120))
    with top_of(server, tmp_path) as terminal:
        screen = terminal.wait_for("TOKENS/S")
        assert screen.startswith(ENTERED)
        assert "queue 0  prefill 0  decode 0  waiting tokens 0  cached 0%  0.0 tokens/s" in screen
        assert re.search(r"memory \S+ \w+, of that HTTP process", screen)
        asking.start()
        backend.let(3)
        terminal.wait_for("queue 0  prefill 1  decode 0")
        terminal.wait_for(f"{3 * CHUNK}/{len(LONG)}")
        backend.let(200)
        terminal.wait_for("queue 0  prefill 0  decode 1")
        terminal.resize(20, 5)
        terminal.wait_for(HOME)
        narrow = terminal.wait_for(HOME)
        for _ in range(10):  # what was drawn before the window changed
            narrow = narrow if narrow.count("\r\n") == 4 else terminal.wait_for(HOME)
        lines = narrow.removesuffix(HOME).split("\r\n")
        assert len(lines) == 5
        assert max(len(re.sub(r"\x1b\[[KJ]", "", line)) for line in lines) <= 20
        assert "\x1b[3" not in narrow  # no colour
        terminal.type("q")
        code, rest = terminal.finish()
        assert (code, rest.endswith(LEFT)) == (0, True)
    backend.let()
    asking.join()


def test_a_server_that_ends_is_told_and_waited_for(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with listening() as server:
            terminal = stack.enter_context(top_of(server, tmp_path))
            terminal.wait_for("queue 0")
        terminal.wait_for(f"the server at http://127.0.0.1:{server.port} failed: ")
        terminal.type("q")
        assert terminal.finish()[0] == 0


def test_ctrl_z_gives_the_terminal_back_and_fg_shows_it_again(server: Listening, tmp_path: Path) -> None:
    top = shlex.join([*COMMAND, "--url", server.url])
    script = f"{top}; stty -a; echo it is stopped; fg; stty -a; echo it has ended"
    with in_terminal(["bash", "-mc", script], tmp_path, {"TERM": "xterm", "NO_PROXY": "127.0.0.1"}) as terminal:
        terminal.wait_for("queue 0")
        terminal.type(CTRL_Z)
        stopped = terminal.wait_for("it is stopped")
        found = stopped.partition(LEFT)[2]
        assert " icanon " in found
        assert " echo " in found
        assert ENTERED not in found
        terminal.wait_for(ENTERED)
        terminal.wait_for("queue 0")
        terminal.type("q")
        code, rest = terminal.finish()
        assert (code, rest.count("it has ended"), " icanon " in rest.split(LEFT)[-1]) == (0, 1, True)


def test_bg_waits_for_the_terminal_and_fg_shows_it_again(server: Listening, tmp_path: Path) -> None:
    top = shlex.join([*COMMAND, "--url", server.url])
    script = f'{top}; bg; while [ -z "$(jobs -s)" ]; do sleep 0.01; done; fg; echo it has ended'
    with in_terminal(["bash", "-mc", script], tmp_path, {"TERM": "xterm", "NO_PROXY": "127.0.0.1"}) as terminal:
        terminal.wait_for("queue 0")
        terminal.type(CTRL_Z)
        terminal.wait_for(LEFT)
        terminal.wait_for("queue 0")
        terminal.type("q")
        code, rest = terminal.finish()
        assert (code, "Traceback" in rest, rest.count("it has ended")) == (0, False, 1)


def test_without_a_terminal_it_prints_one_table(server: Listening) -> None:
    done = subprocess.run(
        [*COMMAND, "--url", server.url], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.count("queue 0") == 1
