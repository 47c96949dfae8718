"""Events on their way to clients: as they come, collected, kept alive, cut, paced."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest

from support.fake_backend import FakeBackend
from support.gated_backend import GatedBackend
from support.plain_dialect import PlainRenderer, plain_dialect
from support.served import SmallPool, listening, small_app
from support.small_model import small_model
from tuili.errors import ClientGoneError, EngineUnavailableError
from tuili.server.caller import Caller
from tuili.server.pacer import FEW_STREAMS, Pacer
from tuili.server.serving import Serving
from tuili.server.streaming import AnswerStream
from tuili.types import GenerateRequest, SamplingParams

SPOKEN = (plain_dialect(),)


def lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def tokens_of(content: bytes) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    for line in lines(content):
        if "at" in line:
            tokens.setdefault("{}.{}".format(*line["at"]), []).extend(line["ids"])
    return tokens


async def test_a_stream_and_a_body_hold_the_same_tokens() -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        body = {"prompts": ["abc", "def"], "n": 2, "temperature": 1.0}
        collected = (await client.post("/plain/generate", json=body)).json()
        streamed = await client.post("/plain/generate", json={**body, "stream": True})
    assert tokens_of(streamed.content) == collected
    assert {name: len(ids) for name, ids in collected.items()} == {"0.0": 8, "0.1": 8, "1.0": 8, "1.1": 8}
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert streamed.headers["cache-control"] == "no-cache"
    assert sorted(line["done"] for line in lines(streamed.content) if "done" in line) == [0, 1]


async def test_what_takes_too_long_ends_in_one_error_event_or_status() -> None:
    backend = GatedBackend()
    async with small_app(spoken=SPOKEN, pool=SmallPool(small_model(backend)), request_timeout_s=0.3) as (app, client):
        body = {"prompts": ["abc"], "max_tokens": 100}
        blocking = await client.post("/plain/generate", json=body)
        assert (blocking.status_code, blocking.json()["code"]) == (504, "deadline_exceeded")
        streamed = await client.post("/plain/generate", json={**body, "stream": True})
        assert streamed.status_code == 200
        assert lines(streamed.content) == [{"error": "deadline_exceeded"}]
        assert app.state.serving.running() == ()
        backend.let()


async def test_a_model_that_loads_too_long_is_not_waited_for() -> None:
    pool = SmallPool(small_model(FakeBackend()))
    pool.gate.clear()
    async with small_app(spoken=SPOKEN, pool=pool, request_timeout_s=0.05) as (app, client):
        answer = await asyncio.wait_for(client.post("/plain/generate", json={"prompts": ["abc"]}), 60)
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert app.state.serving.admission.num_queued == 0
        await asyncio.wait_for(app.state.serving.idle(), 60)
        pool.gate.set()


USES = {
    "/tokenize": {"model": "small", "prompt": "abc"},
    "/detokenize": {"model": "small", "tokens": [1]},
    "/v1/messages/count_tokens": {"model": "small", "messages": [{"role": "user", "content": "abc"}]},
    "/api/generate": {"model": "small"},
    "/v1/models/load": {"model": "small"},
    "/api/pull": {"model": "small"},
}


@pytest.mark.parametrize("path", USES)
async def test_what_uses_a_model_without_answering_is_counted_and_ends_with_draining(path: str) -> None:
    pool = SmallPool(small_model(FakeBackend()))
    pool.gate.clear()
    async with small_app(pool=pool, max_queued_requests=1) as (app, client):
        serving: Serving = app.state.serving
        if path != "/api/pull":  # loads nothing
            first = asyncio.create_task(client.post(path, json=USES[path]))
            while not serving.admission.num_queued:
                await asyncio.sleep(0.001)
            assert (await client.post(path, json=USES[path])).status_code == 429
            pool.gate.set()
            assert (await first).status_code in (200, 400)  # a model without a template
        await asyncio.wait_for(serving.idle(), 60)
        serving.drain()
        assert (await client.post(path, json=USES[path])).status_code == 503


async def test_an_engine_that_fails_is_told_once_and_ends_the_stream() -> None:
    backend = FakeBackend(fail_on={4})
    async with small_app(spoken=SPOKEN, pool=SmallPool(small_model(backend))) as (_, client):
        streamed = await client.post("/plain/generate", json={"prompts": ["abc"], "stream": True})
        assert [next(iter(line)) for line in lines(streamed.content)].count("error") == 1
        assert "error" in lines(streamed.content)[-1]
        backend.fail_on = {backend.num_steps + 3}
        blocking = await client.post("/plain/generate", json={"prompts": ["abc"]})
        assert blocking.status_code == 500


async def test_a_bug_while_streaming_is_told_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def push(*_: object) -> bytes:
        raise KeyError("a secret")

    monkeypatch.setattr(PlainRenderer, "push", push)
    async with small_app(spoken=SPOKEN) as (app, client):
        streamed = await client.post("/plain/generate", json={"prompts": ["abc"], "stream": True})
        assert lines(streamed.content) == [{"error": "internal_error"}]
        assert app.state.serving.running() == ()


async def test_draining_refuses_what_is_new_and_ends_what_runs() -> None:
    backend = GatedBackend()
    async with small_app(spoken=SPOKEN, pool=SmallPool(small_model(backend))) as (app, client):
        serving: Serving = app.state.serving
        body = {"prompts": ["abc"], "stream": True}
        running = asyncio.create_task(client.post("/plain/generate", json=body))
        while not serving.running():
            await asyncio.sleep(0.001)
        serving.drain()
        for response in (await client.get("/ready"), await client.post("/plain/generate", json=body)):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "5"
        assert (await client.get("/health")).status_code == 200
        serving.cut(EngineUnavailableError("the server is shutting down"))
        await asyncio.wait_for(serving.idle(), 60)
        assert lines((await running).content) == [{"error": "engine_unavailable"}]
        backend.let()


def test_headers_come_at_once_and_silence_is_broken_by_the_clock() -> None:
    backend = GatedBackend()
    pool = SmallPool(small_model(backend))
    with listening(spoken=SPOKEN, pool=pool, keep_alive_interval_s=0.1) as server, server.connect() as connection:
        body = json.dumps({"prompts": ["abcd"], "stream": True, "max_tokens": 2}).encode()
        head = f"POST /plain/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        begun_s = time.monotonic()
        connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        received = connection.recv(4096)
        assert received.startswith(b"HTTP/1.1 200 ")  # the engine has not finished a step
        while received.count(b"computed") < 3:
            received += connection.recv(4096)
        assert b'{"computed":[0,4],' in received
        assert time.monotonic() - begun_s > 0.2
        backend.let()
        while b'"done":0' not in received:
            received += connection.recv(4096)


class Unread:
    """A client's side of a stream that takes the headers and nothing after them."""

    def __init__(self) -> None:
        self.num_sent = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        self.num_sent += 1
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()


async def test_a_keep_alive_that_nobody_reads_ends_the_stream() -> None:
    backend = GatedBackend()
    async with small_app(spoken=SPOKEN, pool=SmallPool(small_model(backend))) as (app, _):
        serving: Serving = app.state.serving
        request = GenerateRequest(request_id="", sampling=SamplingParams(max_tokens=2), prompt="abc")
        answering = await serving.answer(Caller(request_id="r", address=""), "small", lambda _: [request])
        response = AnswerStream(answering, PlainRenderer(), 0.02, 0.05)
        with pytest.raises(ClientGoneError):
            await asyncio.wait_for(response({}, asyncio.Event().wait, unread := Unread()), 60)
        assert (unread.num_sent, serving.running()) == (2, ())
        backend.let()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_one_prompt_that_fails_ends_the_others_without_a_word_in_the_log(
    is_streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    complaints: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    pool = SmallPool(small_model(FakeBackend(fail_on={4})))
    async with small_app(spoken=SPOKEN, pool=pool) as (app, client):
        body = {"prompts": ["abc", "def", "ghi"], "stream": is_streamed, "max_tokens": 30}
        answer = await client.post("/plain/generate", json=body)
        assert answer.status_code == (200 if is_streamed else 500)
        assert answer.text.count('"error"') == is_streamed
        assert app.state.serving.pacer.num_streams == 0  # closed by the reader, not by the garbage collector
        del answer
        gc.collect()
        await asyncio.sleep(0)
    assert complaints == []
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_many_streams_share_a_tick_and_few_do_not_wait() -> None:
    pacer = Pacer(tick_s=0.05)
    pacer.num_streams = FEW_STREAMS
    begun_s = time.monotonic()
    await asyncio.wait_for(pacer.wait(), 0.02)
    pacer.num_streams = FEW_STREAMS + 1
    waiters = [asyncio.create_task(pacer.wait()) for _ in range(5)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    await asyncio.wait(waiters[1:])
    assert time.monotonic() - begun_s > 0.045
    assert waiters[0].cancelled()
    assert all(not waiter.cancelled() for waiter in waiters[1:])


async def test_what_is_streamed_to_many_is_what_is_streamed_to_one() -> None:
    async with small_app(spoken=SPOKEN) as (app, client):
        bodies = [{"prompts": ["abcdefgh"[n % 8 :]], "stream": True, "max_tokens": 30} for n in range(24)]
        alone = [tokens_of((await client.post("/plain/generate", json=body)).content) for body in bodies[:8]]
        responses = await asyncio.gather(*(client.post("/plain/generate", json=body) for body in bodies))
        assert [tokens_of(response.content) for response in responses] == alone * 3
        assert app.state.serving.pacer.num_streams == 0
