"""What is worked on beside the event loop: everything that may take long."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
import tokenizers

from support.fake_backend import FakeBackend
from support.gated_backend import GatedBackend
from support.served import SmallPool, small_app
from support.small_model import small_front, small_model, small_tokenizer
from tuili.engine.client import InProcess
from tuili.errors import TuiliError
from tuili.runtime.front.front import Front
from tuili.server.admission import Seats
from tuili.server.caller import Caller
from tuili.server.serving import Serving
from tuili.text.tokenizer import NamedTokens, Tokenizer
from tuili.types import GenerateRequest, SamplingParams

PLAIN = GenerateRequest(request_id="", sampling=SamplingParams(), prompt="a")


@pytest.mark.parametrize(
    ("request_made", "is_beside"),
    [
        (PLAIN, False),
        (replace(PLAIN, prompt="a" * 5000), True),
        (replace(PLAIN, prompt=None, prompt_token_ids=(1,) * 5000), True),
        (replace(PLAIN, sampling=SamplingParams(bad_words=["a" * 1000] * 5)), True),
        (replace(PLAIN, sampling=SamplingParams(dry_multiplier=1.0)), True),
        (replace(PLAIN, prompt=None, messages=({"role": "user", "content": "a" * 5000},)), True),
    ],
)
async def test_long_work_is_done_beside_the_event_loop(
    request_made: GenerateRequest, is_beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def token_request(self: Front, request: GenerateRequest) -> Any:
        threads.append(threading.get_ident())
        raise TuiliError("seen")

    monkeypatch.setattr(Front, "token_request", token_request)
    async with small_app(pool=SmallPool(small_model(FakeBackend()))) as (app, _):
        with pytest.raises(TuiliError, match="seen"):
            await app.state.serving.answer(Caller(request_id="1"), "small", lambda _: [request_made])
    assert (threads != [threading.get_ident()]) is is_beside


async def test_the_engine_has_a_request_before_anybody_reads_its_answer() -> None:
    backend = GatedBackend()
    async with small_app(pool=SmallPool(small_model(backend))) as (app, _):
        serving: Serving = app.state.serving
        caller = Caller(request_id="1")
        answering = await serving.answer(caller, "small", lambda _: [PLAIN, PLAIN])
        assert [part.phase for part in answering.parts] == ["prefill", "prefill"]
        assert serving.admission.num_queued == 0
        client = answering.model.client
        while client.stats().num_running < 2:
            await asyncio.sleep(0)
        await answering.aclose()  # unread
        backend.let()
        while client.stats().num_running:
            await asyncio.sleep(0)
        assert serving.running() == ()
        assert serving.pacer.num_streams == 0
        assert answering.model.front.meter._endings["abort"] == 2


@pytest.mark.parametrize("broken", [(InProcess, "generate"), (Front, "new_answer")])
async def test_what_breaks_as_the_engine_is_asked_leaves_nothing(
    broken: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> None:
        raise TuiliError("broken")

    model = small_model(FakeBackend())
    async with small_app(pool=SmallPool(model)) as (app, client):
        with monkeypatch.context() as patch:
            patch.setattr(*broken, breaks)
            refused = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        serving: Serving = app.state.serving
        assert (refused.status_code, refused.json()["error"]["message"]) == (500, "broken")
        assert (serving.running(), serving.pacer.num_streams, serving.admission.num_queued) == ((), 0, 0)
        assert serving._seats == {}
        assert model.front.meter._endings == {"error": 1}
        async with asyncio.timeout(60):
            while model.loop.stats().num_running or model.loop.stats().num_waiting:
                await asyncio.sleep(0)
        answered = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert answered.status_code == 200


async def test_waiting_for_a_place_is_waiting_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an answer and the metrics tell of the queue begins with the request's arrival."""
    wait_s, take = 0.05, Seats.take

    async def slow_take(self: Seats, *arguments: Any) -> None:
        await asyncio.sleep(wait_s)
        await take(self, *arguments)

    monkeypatch.setattr(Seats, "take", slow_take)
    monkeypatch.setattr(Seats, "take_now", lambda *_: False)
    async with small_app() as (_, client):
        told = (await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})).json()
        metrics = (await client.get("/metrics")).text
    assert told["timings"]["queue_ms"] >= wait_s * 1e3
    (queued_s,) = re.findall(r"vllm:request_queue_time_seconds_sum\{.*\} (.*)", metrics)
    assert float(queued_s) == pytest.approx(told["timings"]["queue_ms"] / 1e3)


async def test_metrics_count_who_waits_here_and_who_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def value(text: str, name: str) -> float:
        return sum(map(float, re.findall(rf"^vllm:{name}(?:{{.*}})? (.*)$", text, re.MULTILINE)))

    backend = GatedBackend()
    async with small_app(pool=SmallPool(small_model(backend))) as (app, client):
        ask = {"prompt": "a", "max_tokens": 5, "ignore_eos": True}
        with monkeypatch.context() as patch:
            patch.setattr(Seats, "_room", lambda _: 0)  # no request gets a place
            waiting = asyncio.create_task(client.post("/v1/completions", json=ask))
            while not app.state.serving.running():
                await asyncio.sleep(0)
            assert value((await client.get("/metrics")).text, "num_requests_waiting") == 1
            waiting.cancel()
            await asyncio.wait([waiting])
        leaving = asyncio.create_task(client.post("/v1/completions", json=ask))
        backend.let(4)
        async with asyncio.timeout(60):
            while value(text := (await client.get("/metrics")).text, "generation_tokens_total") < 2:
                await asyncio.sleep(0)
            while value(text, "prompt_tokens_total") < 1:  # with its first token, not with its last
                await asyncio.sleep(0)
                text = (await client.get("/metrics")).text
        leaving.cancel()
        await asyncio.wait([leaving])
        backend.let()
        text = (await client.get("/metrics")).text
    assert re.findall(r"vllm:request_success_total{(.*)} 1.0", text) == [
        'engine="0",finished_reason="abort",model_name="small"'
    ]


async def test_of_a_text_far_too_long_only_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it would take gigabytes, and minutes."""
    lengths: list[int] = []
    encode = Tokenizer.encode

    def noted(self: Tokenizer, text: str, **options: bool) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    text = "a" * 100_000
    talk = [{"role": "user", "content": text}]
    async with small_app() as (_, client):
        for path, body in (
            ("/v1/completions", {"prompt": text}),
            ("/v1/completions", {"prompt": text, "options": {"num_ctx": 20}}),
            ("/v1/chat/completions", {"messages": talk, "max_tokens": 2}),
            ("/v1/messages", {"messages": talk, "max_tokens": 2}),
            ("/api/chat", {"messages": talk}),
            ("/api/generate", {"prompt": text}),
        ):
            answer = await client.post(path, json={"model": "small", **body})
            assert answer.status_code == 400, path
            assert "tokens; the context holds" in answer.text, path
            assert lengths, path
            assert max(lengths) <= 16 * 128, path
            lengths.clear()
        cut = await client.post("/v1/completions", json={"prompt": text, "truncate_prompt_tokens": 5, "max_tokens": 1})
        assert cut.json()["usage"]["prompt_tokens"] == 5
        counted = await client.post("/tokenize", json={"prompt": text})
        assert counted.json()["count"] == len(text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a"] * 1025}),
        ("/v1/completions", {"prompt": [[1]] * 1025}),
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(i): 1 for i in range(65_537)}}),
        ("/v1/completions", {"prompt": "a", "stop_token_ids": [1] * 65_537}),
        ("/v1/completions", {"prompt": "a", "allowed_token_ids": [1] * 65_537}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 8193}),
        ("/v1/messages", {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant")] * 4097}),
        ("/api/chat", {"messages": [{"role": "user", "content": "a"}] * 8193}),
        ("/tokenize", {"prompt": "a" * (4 << 20) + "a"}),
        ("/tokenize", {"content": "a" * (4 << 20) + "a"}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * (4 << 20)}]}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a" * (4 << 20)}]}),
        ("/api/generate", {"prompt": "a" * (4 << 20) + "a", "raw": True}),
        ("/api/generate", {"prompt": "a" * (4 << 20) + "a", "context": [1]}),
    ],
)
async def test_more_than_a_request_may_bring_is_refused_with_the_limit(path: str, body: dict[str, object]) -> None:
    async with small_app() as (_, client):
        answer = await client.post(path, json={"model": "small", "max_tokens": 1, **body})
    assert answer.status_code == 400
    assert any(limit in answer.text for limit in ("1024", "8192", "65536", "4194304")), answer.text[:300]


def test_special_tokens_of_many_letters_make_no_prompt_too_long() -> None:
    """Taken for text they would be many times as many tokens."""
    mark = "a" * 40
    backend = small_tokenizer()._backend
    backend.add_special_tokens([tokenizers.AddedToken(mark, normalized=False)])
    front = small_front(tokenizer=Tokenizer(backend, NamedTokens()))
    asked = GenerateRequest(request_id="", sampling=SamplingParams(), prompt=mark * 100, parse_special=True)
    prompt, _ = front.token_request(asked)
    assert len(prompt.token_ids) == 100
