"""Conversations of the `anthropic` package with SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from support.served import Listening

ASKED: list[Any] = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture
def client(smollm2_server: Listening) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=smollm2_server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def greedy(name: str) -> dict[str, Any]:
    return {"model": name, "messages": ASKED, "max_tokens": 16, "extra_body": {"temperature": 0}}


def test_a_message_streamed_and_whole(client: anthropic.Anthropic, greedy: dict[str, Any]) -> None:
    whole = client.messages.create(**greedy)
    (block,) = whole.content
    assert block.type == "text"
    assert "4" in block.text
    assert (whole.stop_reason, whole.stop_sequence, whole.role) == ("end_turn", None, "assistant")
    assert whole._request_id == whole.id.removeprefix("msg_")
    with client.messages.stream(**greedy) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert (text, final.content[0].to_dict()) == (block.text, block.to_dict())
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == "end_turn"
    raw = client.messages.create(**greedy, stream=True)
    assert [event.type for event in raw][:1] == ["message_start"]


async def test_the_asynchronous_client(
    smollm2_server: Listening, client: anthropic.Anthropic, greedy: dict[str, Any]
) -> None:
    async with anthropic.AsyncAnthropic(base_url=smollm2_server.url, api_key="none") as asynchronous:
        whole = await asynchronous.messages.create(**greedy)
        async with asynchronous.messages.stream(**greedy) as stream:
            assert "".join([text async for text in stream.text_stream]) == whole.content[0].text


def test_tokens_are_counted_as_they_are_billed(client: anthropic.Anthropic, greedy: dict[str, Any]) -> None:
    prompt: dict[str, Any] = {"model": greedy["model"], "messages": ASKED, "system": "Be brief."}
    counted = client.messages.count_tokens(**prompt).input_tokens
    usage = client.messages.create(**greedy, system="Be brief.").usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_billing_line_that_changes_keeps_the_cache(client: anthropic.Anthropic, greedy: dict[str, Any]) -> None:
    rules = "Answer in one short sentence, and never use bullet points or headings of any kind. " * 8

    def read_from_cache(note: str) -> int:
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cch={note};"},
            {"type": "text", "text": rules, "cache_control": {"type": "ephemeral"}},
        ]
        return client.messages.create(**greedy, system=system).usage.cache_read_input_tokens or 0

    read_from_cache("1a2b3")
    assert read_from_cache("9f8e7") >= 64


def test_stop_sequences_and_limits(client: anthropic.Anthropic, greedy: dict[str, Any]) -> None:
    stopped = client.messages.create(**greedy, stop_sequences=["classic"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "classic")
    assert "classic" not in stopped.content[0].text
    cut = client.messages.create(**{**greedy, "max_tokens": 2})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


def test_an_answer_that_was_begun_goes_on(client: anthropic.Anthropic, greedy: dict[str, Any]) -> None:
    begun: Any = [*ASKED, {"role": "assistant", "content": "The answer is"}]
    answer = client.messages.create(**{**greedy, "messages": begun}).content[0].text
    assert "4" in answer


@pytest.mark.parametrize("streams", [True, False])
def test_errors_are_the_packages_own(client: anthropic.Anthropic, greedy: dict[str, Any], streams: bool) -> None:
    overlong: Any = [{"role": "user", "content": "one two three four " * 200}]
    with pytest.raises(anthropic.BadRequestError, match="the context holds 512") as caught:
        client.messages.create(**{**greedy, "messages": overlong}, stream=streams)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**greedy, "model": "absent"}, stream=streams)
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id == missing.value.body["request_id"]  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="tools is not implemented"):
        client.messages.create(**greedy, tools=[{"name": "f", "input_schema": {"type": "object"}}], stream=streams)


def test_a_stream_that_is_left_ends_its_request(
    client: anthropic.Anthropic, greedy: dict[str, Any], smollm2_server: Listening
) -> None:
    wanted = {**greedy, "messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 400}
    with client.messages.stream(**wanted) as stream:
        next(iter(stream.text_stream))
    smollm2_server.wait_idle()
    assert client.messages.create(**greedy).stop_reason == "end_turn"


def test_betas_are_named_as_without_effect(client: anthropic.Anthropic, greedy: dict[str, Any]) -> None:
    raw = client.beta.messages.with_raw_response.create(**greedy, betas=["new-2026-01-01"])
    assert raw.headers["x-ignored-params"] == "anthropic-beta=new-2026-01-01"
