"""Events on their way to clients: as they come, collected, kept alive, cut, and left."""

from __future__ import annotations

import json

from support.plain_dialect import plain_dialect
from support.served import small_app
from tuili.errors import EngineUnavailableError
from tuili.server.serving import Serving

SPOKEN = (plain_dialect(),)


def lines(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


async def test_a_stream_and_a_body_hold_the_same_tokens() -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        body = {"prompts": ["abc", "def"], "n": 2, "temperature": 1.0}
        collected = (await client.post("/plain/generate", json=body)).json()
        streamed = await client.post("/plain/generate", json={**body, "stream": True})
    tokens: dict[str, list[int]] = {}
    for line in lines(streamed.content):
        if "at" in line:
            tokens.setdefault("{}.{}".format(*line["at"]), []).extend(line["ids"])
    assert tokens == collected
    assert {name: len(ids) for name, ids in tokens.items()} == {"0.0": 8, "0.1": 8, "1.0": 8, "1.1": 8}
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert sorted(line["done"] for line in lines(streamed.content) if "done" in line) == [0, 1]


async def test_what_is_cut_ends_in_one_error_event_or_status() -> None:
    async with small_app(spoken=SPOKEN) as (app, client):
        serving: Serving = app.state.serving
        body = {"prompts": ["abc"], "max_tokens": 100, "timeout_s": 1e-6}
        assert (await client.post("/plain/generate", json=body)).status_code == 504
        streamed = await client.post("/plain/generate", json={**body, "stream": True})
        assert lines(streamed.content)[-1] == {"error": "deadline_exceeded"}
        serving.cut(EngineUnavailableError("gone"))
        assert serving.running() == ()
