"""Events as server-sent events, checked by reading them back, and as one message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuili.errors import (
    DownloadError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
    TuiliError,
)
from tuili.server.dialect import Progress
from tuili.server.dialects.anthropic.rendering import MessageRenderer, error_value
from tuili.types import CacheMiss, Done, Event, Finished, FinishReason, TextDelta, Timings, Usage

TIMINGS = Timings(time_to_first_token_s=0.5, decode_s=0.25)


def renderer(**fields: Any) -> MessageRenderer:
    return MessageRenderer(request_id="r", model="m", num_prompt_tokens=9, max_tokens=3, **fields)


def delta(text: str = "", reasoning: str = "") -> Event:
    return TextDelta(index=0, text=text, token_ids=(1,), reasoning=reasoning)


def end(reason: FinishReason = "stop", stop: str | int | None = None, num_output: int = 3) -> list[Event]:
    usage = Usage(
        num_prompt_tokens=9,
        num_cached_tokens=4,
        num_output_tokens=num_output,
        cache_miss=CacheMiss("new", 4),
        num_reasoning_tokens=1,
    )
    return [Finished(index=0, finish_reason=reason, stop_reason=stop), Done(usage=usage, timings=TIMINGS)]


def events(*of_one: Event) -> list[tuple[int, Event]]:
    return [(0, event) for event in of_one]


def read(content: bytes) -> list[dict[str, Any]]:
    found = []
    for block in content.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_stream_opens_and_closes_each_block() -> None:
    answer = renderer()
    told = read(answer.start())
    told += read(answer.push(events(delta(reasoning="h"), delta(reasoning="m"))))
    told += read(answer.push(events(delta(reasoning="."), delta("Hi"), delta(" you"), *end())))
    assert [event["type"] for event in told] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_delta", "content_block_stop", "content_block_start", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert told[0]["message"]["usage"] == {"input_tokens": 9, "output_tokens": 0}
    assert [event["index"] for event in told if "index" in event] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert [event["delta"]["type"] for event in told if "index" in event and "delta" in event] == [
        *("thinking_delta", "thinking_delta", "signature_delta", "text_delta"),
    ]
    assert told[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert told[-2]["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 1},
        "cache_miss": {"reason": "new", "position": 4},
    }


@pytest.mark.parametrize("omits", [True, False])
def test_whole_and_streamed_say_the_same(omits: bool) -> None:
    told = events(delta(reasoning="h"), delta("a"), delta("b"), *end("stop", "x"))
    whole = renderer(omits_thinking=omits).whole(told)
    answer = renderer(omits_thinking=omits)
    blocks: list[dict[str, Any]] = []
    for event in read(answer.start() + answer.push(told)):
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            for name, value in event["delta"].items():
                if name != "type":
                    blocks[-1][name] += value
        elif event["type"] == "message_delta":
            assert event["delta"].items() <= whole.items()
            assert event["usage"] == whole["usage"]
    assert blocks == whole["content"]
    assert [block["type"] for block in blocks] == ["thinking", "text"]
    assert blocks[0]["thinking"] == ("" if omits else "h")
    assert len(blocks[0]["signature"]) == 64
    assert (whole["id"], whole["role"], whole["stop_sequence"]) == ("msg_r", "assistant", "x")


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (end("stop", 2), "end_turn"),
        (end("stop", "x"), "stop_sequence"),
        (end("length"), "max_tokens"),
        (end("length", num_output=2), "model_context_window_exceeded"),
    ],
)
def test_why_it_ended(ending: list[Event], reason: str) -> None:
    assert renderer().whole(events(delta("a"), *ending))["stop_reason"] == reason


def test_an_answer_without_text_has_an_empty_block() -> None:
    assert renderer().whole(events(*end()))["content"] == [{"type": "text", "text": ""}]
    told = read(renderer().push(events(*end())))
    assert [event["type"] for event in told] == [
        *("content_block_start", "content_block_stop", "message_delta", "message_stop")
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("x"), "invalid_request_error"),
        (ModelNotFoundError("x"), "not_found_error"),
        (QueueFullError("x"), "rate_limit_error"),
        (EngineUnavailableError("x"), "overloaded_error"),
        (DownloadError("x"), "api_error"),
        (TuiliError("x"), "api_error"),
    ],
)
def test_errors_have_the_type_clients_know(error: TuiliError, kind: str) -> None:
    value = {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "r"}
    assert error_value(error, "r") == value
    assert read(renderer().fail(error)) == [value]


def test_a_waiting_client_is_pinged() -> None:
    assert read(renderer().keep_alive(Progress(1, 2))) == [
        {"type": "ping", "prompt_tokens_computed": 1, "prompt_tokens": 2}
    ]
