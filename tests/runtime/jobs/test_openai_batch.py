"""OpenAI's batch files: what is understood, what is refused, and the lines that answer."""

from __future__ import annotations

from typing import Any

import pytest

from tuili.errors import ContextLengthError, InvalidRequestError, TuiliError
from tuili.runtime.api.outputs import CompletionOutput, RequestOutput
from tuili.runtime.jobs.openai_batch import OpenAiTask, is_batch_row
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.task import Served
from tuili.runtime.jobs.template import row_seed
from tuili.runtime.openai.fields import CHAT, COMPLETIONS
from tuili.types import GenerateRequest, Logprob, SamplingParams

MESSAGES = [{"role": "user", "content": "Hi"}]
MODEL = Served(default_sampling={"temperature": 0.6})
TASK = OpenAiTask(model="small", sampling={"top_k": 5})


def _row(url: str = CHAT, index: int = 0, **body: Any) -> Row:
    return Row(index, "b.jsonl:1", {"custom_id": "r1", "method": "POST", "url": url, "body": {"model": "gpt", **body}})


def _request(url: str = CHAT, **body: Any) -> GenerateRequest:
    return TASK.request(_row(url, **body), 3, MODEL)


def test_a_batch_file_is_told_by_its_keys() -> None:
    assert is_batch_row(_row())
    assert not is_batch_row(Row(0, "a", {"custom_id": "x", "prompt": "y"}))


def test_a_chat_body_becomes_a_request() -> None:
    request = _request(
        messages=MESSAGES, max_completion_tokens=9, temperature=0, stop=["a"], logit_bias={"5": 1.5}, user="me",
        stream=False, tools=None, response_format={"type": "text"}, chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    assert (request.request_id, request.messages) == ("r1", tuple(MESSAGES))
    assert request.template_args == {"enable_thinking": False}
    assert request.sampling == SamplingParams(
        temperature=0.0, top_k=5, max_tokens=9, stop=["a"], logit_bias={5: 1.5}, seed=row_seed(3, 0)
    )
    assert _request(messages=MESSAGES).sampling.max_tokens is None
    assert _request(messages=MESSAGES, dry_multiplier=0.5, min_p=0.1).sampling.dry_multiplier == 0.5
    assert _request(messages=MESSAGES, seed=8).sampling.seed == 8
    assert _request(messages=MESSAGES, logprobs=True).sampling.logprobs == 0
    assert _request(messages=MESSAGES, logprobs=True, top_logprobs=3).sampling.logprobs == 3


@pytest.mark.parametrize(
    "harmless",
    [
        {"parallel_tool_calls": True},
        {"parallel_tool_calls": False},
        {"function_call": "auto"},
        {"tools": [], "tool_choice": "auto"},
        {"prompt_cache_key": "k", "store": False, "service_tier": "flex", "metadata": {"a": "b"}},
        {"store": True, "metadata": {"a": "b"}},  # as some programs say of every request
        {"stream": False, "stream_options": {"include_usage": True}},
        {"structured_outputs": None, "extra_args": None},
    ],
)
def test_what_asks_for_nothing_is_taken(harmless: dict[str, Any]) -> None:
    assert _request(messages=MESSAGES, **harmless) == _request(messages=MESSAGES)


def test_the_fields_a_refusal_names_are_those_that_work() -> None:
    with pytest.raises(InvalidRequestError, match=r"wat is not implemented; known are ") as refused:
        _request(messages=MESSAGES, wat=1)
    known = set(str(refused.value).partition("known are ")[2].split(", "))
    assert {"messages", "temperature", "dry_multiplier", "priority", "n"} <= known
    assert not known & {"structured_outputs", "watermarking", "extra_args", "stream", "logits_processors"}


def test_a_completions_body_becomes_a_request() -> None:
    for prompt in ("Once", ["Once"]):
        request = _request(COMPLETIONS, prompt=prompt, best_of=1, echo=False)
        assert (request.prompt, request.sampling.max_tokens) == ("Once", 16)
    for ids in ([1, 2], [[1, 2]]):
        assert _request(COMPLETIONS, prompt=ids).prompt_token_ids == (1, 2)
    assert _request(COMPLETIONS, prompt="a", logprobs=2, max_tokens=4).sampling.logprobs == 2


@pytest.mark.parametrize(
    ("url", "body", "message"),
    [
        (CHAT, {}, "messages must be a list, got None"),
        (CHAT, {"messages": []}, "messages is empty"),
        (CHAT, {"messages": [{"role": 1}]}, r"messages\[0\].role must be one of"),
        (
            CHAT,
            {"messages": MESSAGES, "stream": True},
            "stream is not implemented in files; it may be False or abs",
        ),
        (CHAT, {"messages": MESSAGES, "tools": [{}]}, "tools = .* is not implemented"),
        (CHAT, {"messages": MESSAGES, "wat": 1}, "wat is not implemented; known are .*temperature"),
        (CHAT, {"messages": MESSAGES, "prompt": "a"}, "prompt is not implemented"),
        (CHAT, {"messages": MESSAGES, "logits_processors": ["os.system"]}, "logits_processors is not implemented"),
        (CHAT, {"messages": MESSAGES, "temperature": 9}, r"temperature must be in \[0, 2\], got 9"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"a": 1}}, "logit_bias must map token ids to numbers"),
        (CHAT, {"messages": MESSAGES, "logprobs": 3}, "logprobs must be true or false"),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 3}, "top_logprobs needs logprobs = true beside it"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": 3}, "chat_template_kwargs must be an object"),
        (CHAT, {"messages": MESSAGES, "priority": True}, "priority must be of type int, got True"),
        (CHAT, {"messages": MESSAGES, "function_call": {"name": "f"}}, "it may be 'none' or 'auto' or absent"),
        (CHAT, {"messages": MESSAGES, "parallel_tool_calls": "yes"}, "it may be True or False or absent"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt holds 2 prompts, and .*: give each a line of its own"),
        (COMPLETIONS, {"prompt": [[1], [2], [3]]}, "prompt holds 3 prompts"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt must be text, a list of token ids, or a list of these"),
        (COMPLETIONS, {"prompt": ""}, "prompt must be text, .*; none may be empty, got ''"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, r"logprobs must be an integer in \[0, 20\], got True"),
        ("/v1/embeddings", {}, "url must be one of /v1/chat/completions, /v1/completions, got '/v1/embeddings'"),
    ],
)
def test_bodies_that_cannot_be_answered_are_refused(url: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        _request(url, **body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"custom_id": 3}, "custom_id must be text, got 3"),
        ({"method": "GET"}, "method must be 'POST', got 'GET'"),
        ({"body": []}, r"body must be an object, got \[\]"),
        ({"more": 1}, "'more' is not allowed; allowed are custom_id, method, url, body"),
    ],
)
def test_lines_that_are_no_batch_lines_are_refused(changes: dict[str, Any], message: str) -> None:
    row = _row(messages=MESSAGES)
    with pytest.raises(InvalidRequestError, match=message):
        TASK.request(Row(0, row.place, {**row.values, **changes}), 0, MODEL)


def _line(url: str, output: CompletionOutput, **body: Any) -> dict[str, Any]:
    row = _row(url, **body)
    request = TASK.request(row, 3, MODEL)
    result = TASK.result(row, request, RequestOutput("r1", None, [1, 2], [output]))
    line = dict(TASK.line(row, 3, result))
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("r1", None, 200)
    assert line["id"].startswith("batch_req-")
    return dict(line["response"]["body"])


def test_a_chat_answer_has_the_shape_of_a_chat_completion() -> None:
    entry = {7: Logprob(-2.0, 3, "x"), 8: Logprob(-0.5, 1, "y"), 9: Logprob(-1.0, 2, "ü")}
    output = CompletionOutput(0, "x", [7], logprobs=[entry], finish_reason="stop")
    body = _line(CHAT, output, messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert body["object"] == "chat.completion"
    assert (body["model"], body["created"]) == ("small", 0)
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "x", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["content"] == [
        {
            "token": "x",
            "logprob": -2.0,
            "bytes": [120],
            "top_logprobs": [
                {"token": "y", "logprob": -0.5, "bytes": [121]},
                {"token": "ü", "logprob": -1.0, "bytes": [195, 188]},
            ],
        }
    ]


def test_a_completion_has_the_shape_of_a_completion() -> None:
    entries = [{7: Logprob(-2.0, 3, "ab"), 8: Logprob(-0.5, 1, "y")}, {9: Logprob(-1.0, 1, "c")}]
    output = CompletionOutput(0, "abc", [7, 9], logprobs=entries, finish_reason="length")
    body = _line(COMPLETIONS, output, prompt="p", logprobs=1)
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {
            "index": 0,
            "text": "abc",
            "finish_reason": "length",
            "logprobs": {
                "text_offset": [0, 2],
                "tokens": ["ab", "c"],
                "token_logprobs": [-2.0, -1.0],
                "top_logprobs": [{"y": -0.5, "ab": -2.0}, {"c": -1.0}],
            },
        }
    ]
    assert _line(COMPLETIONS, CompletionOutput(0, "a", [7]), prompt="p")["choices"][0]["logprobs"] is None


def test_a_failure_has_the_shape_of_an_error() -> None:
    row = _row(messages=MESSAGES)
    line = TASK.line(row, 3, TASK.failure(ContextLengthError("too long", param="messages")))
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"] == {
        "message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"
    }  # fmt: skip
    assert TASK.failure(TuiliError("broken"))["body"]["error"]["type"] == "server_error"
