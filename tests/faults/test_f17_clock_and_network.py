"""F17: the wall clock jumps, names cannot be resolved, a proxy is set: serving does not notice."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time

import pytest

from support.gated_backend import GatedBackend
from support.plain_dialect import plain_dialect
from support.served import SmallPool, small_app
from support.small_model import small_model

SPOKEN = (plain_dialect(),)
BODY = {"prompts": ["abc"], "max_tokens": 20, "stream": True}


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_clock_that_jumps_by_an_hour_changes_nothing(jump_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        expected = (await client.post("/plain/generate", json=BODY)).content
    backend, real = GatedBackend(), time.time
    pool = SmallPool(small_model(backend))
    async with small_app(spoken=SPOKEN, pool=pool, keep_alive_interval_s=30.0) as (app, client):
        running = asyncio.create_task(client.post("/plain/generate", json=BODY))
        while not app.state.serving.running():
            await asyncio.sleep(0.001)
        jumps = itertools.cycle([0.0, jump_s])
        monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
        for _ in range(5):
            backend.let(1)
            await asyncio.sleep(0.01)
        assert not running.done()  # neither timed out nor kept alive
        backend.let()
        assert (await running).content == expected
        assert (await client.get("/ready")).status_code == 200


async def test_without_names_and_with_a_proxy_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    async with small_app(spoken=SPOKEN, host="0.0.0.0", is_insecure=True) as (_, client):
        monkeypatch.setattr(socket, "getaddrinfo", unreachable)
        answer = await client.post("/plain/generate", json=BODY)
        assert answer.status_code == 200
        assert b'"done":0' in answer.content
        assert (await client.get("/health", headers={"host": "never.heard.of"})).status_code == 403
