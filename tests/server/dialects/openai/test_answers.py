"""Streamed, blocking and offline answers are the same, in every shape that a body may ask for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from support.fake_backend import FakeBackend
from support.served import SmallPool, small_app
from support.small_model import small_model
from tuili.errors import EngineUnavailableError
from tuili.runtime.api.outputs import collect
from tuili.server.dialect import Progress
from tuili.server.dialects.openai.completions import CompletionForm
from tuili.server.dialects.openai.missing_routes import MISSING
from tuili.server.dialects.openai.render import AnswerForm, Renderer
from tuili.types import GenerateRequest, SamplingParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TALK = [{"role": "user", "content": "Hello"}]
UNTOLD = ("id", "created", "timings")  # what differs from request to request


def _chunks(text: str) -> list[dict[str, Any]]:
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """A blocking answer made of a stream's chunks."""
    choices: dict[int, dict[str, Any]] = {}
    beside: dict[str, Any] = {}
    for chunk in chunks:
        beside |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for choice in chunk["choices"]:
            whole = choices.setdefault(choice["index"], {"index": choice["index"]})
            _merge(whole, choice)
    assert all(choice["finish_reason"] for choice in choices.values())
    return {**beside, "choices": [choices[i] for i in sorted(choices)]}


def _merge(whole: dict[str, Any], news: dict[str, Any]) -> None:
    for name, value in news.items():
        if name == "index":
            continue
        if isinstance(value, str) and name not in ("finish_reason", "role"):
            whole[name] = whole.get(name, "") + value
        elif isinstance(value, list):
            whole[name] = whole.get(name, []) + value
        elif isinstance(value, dict):
            whole[name] = whole.get(name) or {}
            _merge(whole[name], value)
        elif value is not None or name not in whole:
            whole[name] = value


def _comparable(body: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in body.items() if name not in (*UNTOLD, "object")}
    told["usage"] = {name: value for name, value in told["usage"].items() if name != "prompt_tokens_details"}
    told["choices"] = [
        {**{k: v for k, v in c.items() if k not in ("message", "delta")}, "said": c.get("message", c.get("delta"))}
        for c in told["choices"]
    ]
    for choice in told["choices"]:
        if choice["said"] is not None:
            choice["said"] = {k: v for k, v in choice["said"].items() if v is not None}
    return told


async def _both(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    async with small_app() as (_, client):
        blocking = await client.post(url, json=body)
        streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
        streamed = await client.post(url, json=streaming)
    assert blocking.status_code == streamed.status_code == 200, blocking.text + streamed.text
    assert streamed.headers["content-type"].startswith("text/event-stream")
    return blocking.json(), _joined(_chunks(streamed.text))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"temperature": 0, "max_tokens": 40},
        {"seed": 3, "n": 3, "max_completion_tokens": 9},
        {"seed": 3, "logprobs": True, "top_logprobs": 3},
        {"seed": 3, "n": 2, "logprobs": True, "return_tokens_as_token_ids": True, "return_token_ids": True},
        {"seed": 3, "stop": ["a", "b"], "include_stop_str_in_output": True, "max_tokens": 60},
        {"seed": 3, "stop_token_ids": [1, 2, 3, 4, 5], "max_tokens": 60},
        {"messages": [*TALK, {"role": "assistant", "content": "Yes"}], "continue_final_message": True, "echo": True},
        {"use_beam_search": True, "n": 3, "length_penalty": 0.5, "max_tokens": 5},
        {"seed": 3, "options": {"num_ctx": 16}, "max_tokens": None},
        {"seed": 3, "samplers": "kt", "top_k": 3, "dry_multiplier": 1.0, "mirostat": 0, "bad_words": ["a"]},
    ],
)
async def test_a_chat_is_the_same_streamed_or_not(body: dict[str, Any]) -> None:
    blocking, streamed = await _both(CHAT, {"messages": TALK, "seed": 1, **body})
    assert _comparable(streamed) == _comparable(blocking)
    message = blocking["choices"][0]["message"]
    assert (blocking["object"], message["role"], message["refusal"]) == ("chat.completion", "assistant", None)
    assert len(blocking["choices"]) == body.get("n", 1)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ["Hello", "world"], "n": 2, "seed": 4},
        {"prompt": [[1, 2, 3], [4, 5]], "echo": True, "seed": 4},
        {"prompt": [1, 2, 3], "echo": True, "logprobs": 2, "max_tokens": 0},
        {"echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0},
        {"echo": True, "logprobs": 0, "n": 3, "seed": 9},
        {"logprobs": 3, "seed": 2, "return_token_ids": True, "return_tokens_as_token_ids": True},
        {"prompt": "a b c d e f", "truncate_prompt_tokens": 3, "echo": True},
    ],
)
async def test_a_completion_is_the_same_streamed_or_not(body: dict[str, Any]) -> None:
    blocking, streamed = await _both(COMPLETIONS, {"prompt": "Hello", "max_tokens": 6, "seed": 1, **body})
    for choice in blocking["choices"]:
        choice.pop("prompt_token_ids", None)
    assert _comparable(streamed) == _comparable(blocking)
    assert [choice["index"] for choice in blocking["choices"]] == list(range(len(blocking["choices"])))
    for choice in blocking["choices"]:
        if (logprobs := choice["logprobs"]) is not None:
            assert len({len(entries) for entries in logprobs.values()}) == 1
            if "return_tokens_as_token_ids" not in body:
                assert "".join(logprobs["tokens"]).startswith(choice["text"][:3])


async def test_what_is_told_of_an_echoed_prompt_fits_its_text() -> None:
    """As evaluation tools read it: log probabilities of given text, and whether it is what the model would say."""
    body = {"prompt": ["Hello world", "abc"], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    async with small_app() as (_, client):
        told = (await client.post(COMPLETIONS, json=body)).json()
        nothing_more = (await client.post(COMPLETIONS, json={**body, "max_tokens": 0})).json()
    for choice, without, prompt in zip(told["choices"], nothing_more["choices"], body["prompt"], strict=True):  # type: ignore[arg-type]
        logprobs = choice["logprobs"]
        assert choice["text"].startswith(prompt)
        assert without["text"] == prompt
        assert {name: entries[:-1] for name, entries in logprobs.items()} == without["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert all(value < 0 for value in logprobs["token_logprobs"][1:])
        for offset, token in zip(logprobs["text_offset"][:-1], logprobs["tokens"][:-1], strict=True):
            assert prompt[offset : offset + len(token)] == token
        for value, best in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert max(best.values()) >= value
    assert nothing_more["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 11, "n": 2}])
async def test_answers_are_those_of_the_library(sampling: dict[str, Any]) -> None:
    pipeline = small_model(FakeBackend())
    async with small_app(pool=SmallPool(pipeline)) as (_, client):
        params = SamplingParams(**{"max_tokens": 12, **sampling})
        n = params.n
        chat = GenerateRequest(request_id="a", sampling=params, messages=tuple(TALK))
        text = GenerateRequest(request_id="b", sampling=params, prompt="Hello")
        expected = [[o.text for o in collect("r", n, pipeline.stream(request)).outputs] for request in (chat, text)]
        said = (await client.post(CHAT, json={"messages": TALK, "max_tokens": 12, **sampling})).json()
        written = (await client.post(COMPLETIONS, json={"prompt": "Hello", "max_tokens": 12, **sampling})).json()
    assert [choice["message"]["content"] for choice in said["choices"]] == expected[0]
    assert [choice["text"] for choice in written["choices"]] == expected[1]


async def test_usage_timings_and_fingerprint() -> None:
    async with small_app() as (_, client):
        body = {"messages": [{"role": "user", "content": "Hello " * 8}], "max_tokens": 4, "temperature": 0}
        first, second = [(await client.post(CHAT, json=body)).json() for _ in range(2)]
        options = {"include_usage": True, "continuous_usage_stats": True}
        streamed = _chunks((await client.post(CHAT, json={**body, "stream": True, "stream_options": options})).text)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert first["usage"]["prompt_tokens_details"]["cache_miss_reason"] == "new"
    again = second["usage"]["prompt_tokens_details"]
    assert again == {"cached_tokens": 48, "cache_miss_reason": "block_end", "first_different_token": 48}
    assert second["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert first["system_fingerprint"] == second["system_fingerprint"]
    assert first["system_fingerprint"].startswith("fp_")
    assert second["timings"]["cache_n"] == 48
    assert second["timings"]["predicted_n"] == 4
    assert all(chunk["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"] for chunk in streamed)
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"]["completion_tokens"] == 4
    assert [chunk["usage"]["completion_tokens"] for chunk in streamed] == sorted(
        chunk["usage"]["completion_tokens"] for chunk in streamed
    )


THINKING = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}<think>{% endif %}"


async def test_thinking_is_told_apart_and_may_be_left_out() -> None:
    pool = SmallPool(small_model(FakeBackend(), template=THINKING))
    body = {"messages": TALK, "seed": 5, "max_tokens": 12, "logprobs": True, "return_token_ids": True}
    async with small_app(pool=pool) as (_, client):
        told = (await client.post(CHAT, json=body)).json()
        hidden = (await client.post(CHAT, json={**body, "include_reasoning": False})).json()
        streamed = _joined(_chunks((await client.post(CHAT, json={**body, "stream": True})).text))
        raw = (await client.post(COMPLETIONS, json={"prompt": "Hello <think>", "max_tokens": 4})).json()
    message = told["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"] == message["reasoning"] != ""
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == told["usage"]["completion_tokens"]
    assert streamed["choices"][0]["delta"]["reasoning_content"] == message["reasoning_content"]
    assert hidden["choices"][0]["message"] == {"role": "assistant", "content": "", "refusal": None}
    assert hidden["choices"][0]["logprobs"]["content"] == hidden["choices"][0]["token_ids"] == []
    assert "reasoning" not in raw["choices"][0]


async def test_models_tokens_and_text() -> None:
    async with small_app() as (_, client):
        models = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/small")).json()
        missing = await client.get("/v1/models/org/none")
        plain = (await client.post("/tokenize", json={"prompt": "Hello", "return_token_strs": True})).json()
        chat = (await client.post("/tokenize", json={"messages": TALK})).json()
        llama = (await client.post("/tokenize", json={"content": "Hi", "with_pieces": True})).json()
        back = (await client.post("/detokenize", json={"tokens": plain["tokens"]})).json()
        wrong = await client.post("/detokenize", json={"tokens": [4000]})
        none = await client.post("/tokenize", json={})
        both = {"messages": TALK, "add_generation_prompt": True, "continue_final_message": True}
        excluded = await client.post("/tokenize", json=both)
    assert models["object"] == "list"
    assert models["data"] == [one]
    assert (one["id"], one["max_model_len"], one["owned_by"]) == ("small", 128, "tuili")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert plain["token_strs"] == list("Hello")
    assert (plain["count"], plain["max_model_len"]) == (5, 128)
    assert chat["count"] == len("user Hello ")
    assert llama["tokens"][0] == {"id": plain["tokens"][0], "piece": "H"}
    assert back == {"prompt": "Hello", "content": "Hello"}
    assert (wrong.status_code, none.status_code) == (400, 400)
    assert (excluded.status_code, excluded.json()["error"]["param"]) == (400, "continue_final_message")


def _renderer(**asked: Any) -> Renderer:
    class Form(CompletionForm):
        def __init__(self) -> None:
            self.prompts = []

    return Renderer(AnswerForm(id="i", model="m", fingerprint="f", num_choices=1, **asked), Form())


def test_errors_and_progress_within_a_stream() -> None:
    error = _renderer().fail(EngineUnavailableError("restarting"))
    told = json.loads(error.removeprefix(b"data: "))["error"]
    assert (told["message"], told["type"], told["code"]) == ("restarting", "server_error", "engine_unavailable")
    assert _renderer().keep_alive(Progress(3, 9)) == b": prompt 3/9\n\n"
    progress = json.loads(_renderer(has_progress=True).keep_alive(Progress(3, 9, 1, 0.25)).removeprefix(b"data: "))
    assert progress["choices"] == []
    assert progress["prompt_progress"] == {"total": 9, "cache": 1, "processed": 3, "time_ms": 250}


async def test_a_response_is_json() -> None:
    async with small_app() as (_, client):
        response: httpx.Response = await client.post(COMPLETIONS, json={"prompt": "a", "request_id": "mine"})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["id"] == "cmpl-mine"


async def test_a_server_may_tell_usage_and_ids_whether_asked_or_not() -> None:
    ask = {"model": "small", "prompt": "a", "logprobs": 1, "max_tokens": 2, "ignore_eos": True}
    async with small_app(forces_usage=True, tells_token_ids=True) as (_, client):
        streamed = _chunks((await client.post(COMPLETIONS, json={**ask, "stream": True})).text)
        declined = {**ask, "stream": True, "stream_options": {"include_usage": False}}
        still = _chunks((await client.post(COMPLETIONS, json=declined)).text)
        own = (await client.post(COMPLETIONS, json={**ask, "return_tokens_as_token_ids": False})).json()
    for chunks in (streamed, still):
        assert chunks[-1]["usage"]["completion_tokens"] == 2
        assert chunks[-1]["choices"] == []
    tokens = [
        token for chunk in streamed[:-1] for token in (chunk["choices"][0]["logprobs"] or {"tokens": []})["tokens"]
    ]
    assert [token.partition(":")[0] for token in tokens] == ["token_id"] * 2
    assert not any(token.startswith("token_id:") for token in own["choices"][0]["logprobs"]["tokens"])


async def test_answers_have_the_role_that_the_server_was_told() -> None:
    ask = {"messages": TALK, "max_tokens": 2, "seed": 1}
    async with small_app(response_role="model") as (_, client):
        whole = (await client.post(CHAT, json=ask)).json()
        first, *_ = _chunks((await client.post(CHAT, json={**ask, "stream": True})).text)
    assert (whole["choices"][0]["message"]["role"], first["choices"][0]["delta"]["role"]) == ("model", "model")


async def test_paths_without_v1_that_llama_server_has_are_the_same() -> None:
    ask = {"messages": TALK, "max_tokens": 2, "seed": 1}
    async with small_app() as (_, client):
        with_v1, without = [(await client.post(path, json=ask)).json() for path in (CHAT, "/chat/completions")]
        assert (await client.get("/models")).json() == (await client.get("/v1/models")).json()
        wrong = await client.post("/chat/completions", json={"messages": 1})
    assert _comparable(with_v1) == _comparable(without)
    assert wrong.json()["error"]["type"] == "invalid_request_error"


async def test_endpoints_that_are_not_there_yet_say_so() -> None:
    async with small_app() as (_, client):
        for method, path, _scope, why in MISSING:
            reply = await client.request(
                method, path.format(response_id=1, batch_id=1, slot=1), json={"model": "small"}
            )
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
            assert error["message"] == f"{path.partition('/{')[0]} is not implemented: {why}"
