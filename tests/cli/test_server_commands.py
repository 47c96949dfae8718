"""ps, stop and top against a server on a port of the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from support.served import Listening, listening
from tuili.server.admission import Seats

from .conftest import Cli


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with listening() as server:
        monkeypatch.setenv("TUILI_HOST", f"127.0.0.1:{server.port}")
        yield server


def test_ps_lists_what_is_loaded(cli: Cli, server: Listening) -> None:
    lines = cli("ps").out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "MEMORY"]
    assert lines[1].startswith("small:latest")
    assert lines[1].endswith("128      for ever")
    (model,) = json.loads(cli("ps", "--json", "--url", server.url).out)
    assert model["name"] == "small:latest"


def test_top_shows_what_waits(cli: Cli, server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "queue 0  prefill 0  decode 0  waiting tokens 0  cached 0%  0.0 tokens/s" in cli("top", "--once").out
    monkeypatch.setattr(Seats, "_room", lambda _: 0)  # no request gets a place
    body = {"model": "small", "prompt": "abc"}
    with httpx.Client(base_url=server.url, timeout=60) as client, client.stream("POST", "/api/generate", json=body):
        (row,) = json.loads(cli("top", "--once", "--json").out)["requests"]
        text = cli("top").out
    waiting = {"model": "small", "key": "anonymous", "phase": "queue", "prompt_tokens": 9, "output_tokens": 0}
    assert waiting.items() <= row.items()
    assert "queue 1  prefill 0  decode 0  waiting tokens 9" in text
    assert "small:latest" in text


def test_stop_unloads(cli: Cli, server: Listening) -> None:
    assert cli("stop", "small").code == 0
    missing = cli("stop", "absent")
    assert (missing.code, missing.err) == (1, "error: there is no model 'absent'\n")


@pytest.mark.parametrize("command", [["ps"], ["top", "--once"], ["stop", "x"]])
def test_without_a_server_it_says_so(cli: Cli, command: list[str]) -> None:
    outcome = cli(*command, "--url", "http://127.0.0.1:1")
    assert outcome.code == 1
    assert cli(*command).err.startswith("error: no tuili server runs at ")
    assert "no tuili server answers at http://127.0.0.1:1, which --url names" in outcome.err
