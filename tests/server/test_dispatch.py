"""Handlers are called at once, and a full queue turns away unread whom the keys let in."""

from __future__ import annotations

import asyncio

import pytest

from support.served import small_app
from tuili.server.api_keys import read_api_keys
from tuili.server.serving import Serving

KEYS = read_api_keys(["user-key-1 infer"])
KEY = {"authorization": "Bearer user-key-1"}
QUEUED = ["/v1/chat/completions", "/v1/completions", "/v1/messages"]


@pytest.mark.parametrize("path", QUEUED)
async def test_a_full_queue_refuses_unread(path: str) -> None:
    async with small_app(api_keys=KEYS, max_queued_requests=1) as (app, client):
        serving: Serving = app.state.serving
        with serving.accepted():
            refused = await client.post(path, content=b'{"no JSON', headers=KEY)
            assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
            assert (await client.post(path, content=b'{"no JSON')).status_code == 401  # a stranger learns nothing of it
            assert serving.admission.num_refused == 1
        assert (await client.post(path, content=b'{"no JSON', headers=KEY)).status_code in (400, 415)


async def test_a_draining_server_refuses_unread() -> None:
    async with small_app() as (app, client):
        app.state.serving.drain()
        assert (await client.post("/v1/completions", content=b'{"no JSON')).status_code == 503


async def test_what_does_not_wait_is_answered_beside_a_full_queue() -> None:
    async with small_app(max_queued_requests=1) as (app, client):
        with app.state.serving.accepted():
            for path in ("/health", "/v1/models", "/metrics", "/api/tags"):
                assert (await client.get(path)).status_code == 200, path


async def test_a_refused_body_is_read_past_and_the_connection_goes_on() -> None:
    async def body() -> object:
        for _ in range(3):
            yield b"x" * 1000
            await asyncio.sleep(0)

    async with small_app(max_queued_requests=1) as (app, client):
        with app.state.serving.accepted():
            assert (await client.post("/v1/completions", content=body())).status_code == 429
        assert (await client.get("/health")).status_code == 200


async def test_routes_are_still_logged_and_counted_by_name() -> None:
    async with small_app(root_path="/models") as (app, client):
        for _ in range(2):
            assert (await client.get("/models/health")).status_code == 200
        assert (await client.get("/v1/models/none")).status_code == 404  # a parameter: the router's
        counts = app.state.request_log.counts
        assert counts["GET", "/health", 200] == 2
        assert counts["GET", "/v1/models/{model:path}", 404] == 1
