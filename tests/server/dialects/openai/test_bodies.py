"""Bodies and the tables of fields name the same; what is not implemented is refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from support.served import small_app
from tuili.runtime.openai.fields import CHAT, COMPLETIONS, REFUSED, WITHOUT_EFFECT, taken_over_http
from tuili.runtime.openai.requests import without_unimplemented
from tuili.server.dialects.openai.bodies import ChatBody, CompletionBody

TALK = [{"role": "user", "content": "Hi"}]
OTHERS = REFUSED.keys() | WITHOUT_EFFECT.keys()


def test_bodies_hold_the_fields_of_the_tables() -> None:
    assert ChatBody.model_fields.keys() == taken_over_http(CHAT) | OTHERS
    assert CompletionBody.model_fields.keys() == taken_over_http(COMPLETIONS) | OTHERS


def test_every_field_of_the_openai_client_is_known() -> None:
    chat = chat_create_params.CompletionCreateParamsBase.__annotations__.keys()
    completion = completion_create_params.CompletionCreateParamsBase.__annotations__.keys()
    assert chat <= ChatBody.model_fields.keys()
    assert completion <= CompletionBody.model_fields.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_asks_for_nothing_is_taken_and_all_else_is_refused(name: str) -> None:
    for value in REFUSED[name].neutral:
        assert without_unimplemented({name: value}) == {}
    with pytest.raises(ValueError, match=f"{name} = 'wish' is not implemented: ") as refused:
        without_unimplemented({name: "wish"})
    assert getattr(refused.value, "param", None) == name


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_what_is_asked_in_vain_is_told_and_refused_by_a_strict_server(url: str) -> None:
    body = {"messages": TALK} if url == CHAT else {"prompt": "Hi"}
    body |= {"max_tokens": 1, "temperature": 0}
    async with small_app() as (_, client):
        told = await client.post(url, json=body | {"store": True, "metadata": {"a": "b"}, "user": "me"})
        nothing = await client.post(url, json=body | {"store": False, "metadata": {}})
    assert (told.status_code, told.headers["x-ignored-params"]) == (200, "store, metadata")
    assert (nothing.status_code, "x-ignored-params" in nothing.headers) == (200, False)
    async with small_app(is_strict=True) as (_, client):
        refused = await client.post(url, json=body | {"store": True})
        nothing = await client.post(url, json=body | {"store": False, "metadata": {}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    assert refused.json()["error"]["message"] == "store has no effect here: answers are not stored"
    assert nothing.status_code == 200


async def _error(url: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    async with small_app() as (_, client):
        response = await client.post(url, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "messages", "messages is missing"),
        ({"messages": []}, "messages", "messages is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "of type 'text'"),
        ({"messages": TALK, "temperature": "hot"}, "temperature", "temperature must be a number"),
        ({"messages": TALK, "temperature": 9}, "temperature", "in [0, 2], got 9"),
        ({"messages": TALK, "n": 129}, "n", "n must be an integer in [1, 128]"),
        ({"messages": TALK, "top_logprobs": 2}, "top_logprobs", "needs logprobs = true"),
        ({"messages": TALK, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "in [0, 20]"),
        ({"messages": TALK, "stream_options": {"include_usage": True}}, "stream_options", "needs stream = true"),
        ({"messages": TALK, "tools": [{"type": "function"}]}, "tools", "tools = "),
        ({"messages": TALK, "response_format": {"type": "json_object"}}, "response_format", "structured output"),
        ({"messages": TALK, "stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "whole answers only"),
        ({"messages": TALK, "reasoning_effort": "extreme"}, "reasoning_effort", "one of none, minimal"),
        ({"messages": TALK, "length_penalty": 2}, "length_penalty", "needs use_beam_search"),
        ({"messages": TALK, "use_beam_search": True, "top_k": 3}, "top_k", "has no meaning with use_beam_search"),
        ({"messages": TALK, "options": {"num_ctx": 4}}, "prompt", "the context is limited to 4"),
        ({"messages": TALK, "options": {"num_ctx": 0}}, "options.num_ctx", "num_ctx"),
        ({"messages": TALK, "chat_template": "{{ x"}, None, "chat template"),
        ({"messages": TALK, "chat_template_kwargs": {"tokenize": True}}, "template_args", "reserved"),
        ({"messages": TALK, "priority": 2**63}, "priority", "priority"),
        ({"messages": TALK, "cache_salt": ""}, "cache_salt", "cache_salt"),
        ({"messages": TALK, "continue_final_message": True, "add_generation_prompt": True}, None, "exclude each other"),
        ({"messages": [{"role": "user", "content": "a" * 200}]}, "prompt", "maximum context length"),
    ],
)
async def test_wrong_chats_are_refused_alike_streamed_or_not(
    body: dict[str, Any], param: str | None, message: str
) -> None:
    error = await _error("/v1/chat/completions", body)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    if "stream" not in body and "stream_options" not in body:
        streamed = await _error("/v1/chat/completions", {**body, "stream": True})
        assert {**streamed, "request_id": ""} == {**error, "request_id": ""}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [1, 99999]}, "prompt_token_ids"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "seed": 1.5}, "seed"),
        ({"prompt": "a", "logit_bias": {"a": 1}}, "logit_bias"),
    ],
)
async def test_wrong_completions_are_refused(body: dict[str, Any], param: str) -> None:
    assert (await _error("/v1/completions", body))["param"].startswith(param)


async def test_a_prompt_that_is_too_long_is_told_with_its_numbers() -> None:
    for url, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 200}]}),
        ("/v1/completions", {"prompt": "a" * 200}),
        ("/v1/completions", {"prompt": "a" * 200, "stream": True}),
    ):
        error = await _error(url, body)
        assert error["code"] == "context_length_exceeded"
        assert "tokens; the context holds 128" in error["message"]


async def test_unknown_models_and_fields() -> None:
    assert (await _error("/v1/completions", {"model": "none", "prompt": "a"}, 404))["code"] == "model_not_found"
    async with small_app() as (_, client):
        response: httpx.Response = await client.post("/v1/completions", json={"prompt": "a", "wish": 1})
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == "wish"


async def test_an_option_of_streams_that_changes_nothing_is_named() -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_obfuscation": True, "new": 1}}
    async with small_app() as (_, client):
        response = await client.post("/v1/completions", json=body)
    told = response.headers["x-ignored-params"].split(", ")
    assert sorted(told) == ["stream_options.include_obfuscation", "stream_options.new"]
