"""Bodies: JSON that means one thing only, and the first fault named."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, field_validator
from starlette.requests import Request
from starlette.types import Message

from support.plain_dialect import plain_dialect
from support.served import small_app
from tuili.checks import first_doubled
from tuili.errors import InvalidRequestError
from tuili.server.body import MAX_DEPTH, MAX_PARTS, parse_json, read_body, unknown_fields, validated
from tuili.server.caller import Caller
from tuili.server.dialects.anthropic.bodies import MessagesBody
from tuili.server.dialects.ollama.bodies import ChatBody as OllamaChatBody
from tuili.server.dialects.ollama.bodies import CopyBody, GenerateBody, PullBody, ShowBody
from tuili.server.dialects.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

SPOKEN = (plain_dialect(),)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str


class Options(BaseModel):
    model_config = ConfigDict(extra="allow")
    deep: bool = False


class Sample(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: float = 0.0
    count: int = 0
    flag: bool = False
    content: str | list[TextPart] = ""
    options: Options | None = None
    names: list[str] = []
    bias: dict[str, float] = {}


def nested(depth: int, opening: str, closing: str) -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"{'a': 1}", "no JSON"),
        (b'{"a": 1} {"b": 2}', "no JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "beyond all numbers"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"x": [{"b": 1, "c": 3, "b": 1}]}', "'b' twice"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8"),
        (b'{"a": "\xff"}', "no UTF-8 text at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "no UTF-8"),
        (rb'{"a": "\ud800"}', "lone surrogate"),
        (rb'{"a": ["\udC00 x"]}', "lone surrogate"),
        (rb'{"\ud83d": 1}', "lone surrogate"),
        (rb'{"a": "\u0000"}', "NUL"),
        (b'{"a": "\x00"}', "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": ' + nested(100_000, "[", "]") + b"}", "nested deeper"),
        (b'{"a": ' + nested(100_000, '{"a":', "}") + b"}", "nested deeper"),
        (b'{"a": ' + nested(MAX_DEPTH, "[", "]") + b"}", "nested deeper"),
        (b'{"a": ' + b"[" * 100_000, "no JSON|nested deeper"),
    ],
)
def test_json_that_programs_stumble_over_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_json(content)


def test_all_other_json_is_read() -> None:
    value = {"a": [1, -2.5, 10**30, True, None, "ü\n推理 😀"], "": {}, "b": [[[[]]]] * 100}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json(nested(MAX_DEPTH - 1, "[", "]"))
    assert parse_json(b" 1 ") == 1


def test_names_objects_and_lists_are_counted_before_they_are_made() -> None:
    def names(count: int) -> bytes:
        return b"{" + b",".join(b'"%d\\" {[" : 1' % n for n in range(count)) + b"}"

    assert len(parse_json(names(MAX_PARTS - 1))) == MAX_PARTS - 1
    for content in (names(MAX_PARTS), b'{"a": [' + b"{}," * MAX_PARTS + b"{}]}", b"[" * (MAX_PARTS + 1)):
        with pytest.raises(InvalidRequestError, match="more than 262144 names, objects and lists"):
            parse_json(content)
    text = '":[{\\' * MAX_PARTS
    assert parse_json(json.dumps([text]).encode()) == [text]  # in a text they are none
    with pytest.raises(InvalidRequestError, match="no JSON"):
        parse_json(b'{"a": "' + b'\\"' * 10 + b"[" * MAX_PARTS)


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ([], None, "must be a JSON object"),
        ({"number": "1"}, "number", "number must be a number, got '1'"),
        ({"number": True}, "number", "number must be a number, got True"),
        ({"count": 1.5}, "count", "count must be an integer"),
        ({"count": "1"}, "count", "count must be an integer"),
        ({"flag": 1}, "flag", "flag must be true or false, got 1"),
        ({"content": 5}, "content", "content must be a"),
        ({"content": [{"text": 1}]}, "content[0].text", "must be a string, got 1"),
        ({"content": [{}]}, "content[0].text", r"content\[0\].text is missing"),
        ({"options": []}, "options", "options must be an object"),
        ({"options": {"deep": "yes"}}, "options.deep", "options.deep must be true or false"),
        ({"names": "a"}, "names", "names must be a list"),
        ({"names": ["a", 1]}, "names[1]", r"names\[1\] must be a string"),
        ({"bias": {"7": "x"}}, "bias.7", "must be a number"),
        ({"names": ["x" * 10**6, 1]}, "names[1]", "must be a string"),
    ],
)
def test_the_first_fault_is_named(value: Any, param: str | None, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        validated(value, Sample)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300


def test_unknown_fields_are_found_also_inside() -> None:
    value = {"number": 1, "extra": 2, "options": {"deep": True, "deeper": 1}, "content": [{"text": "a", "kept": 1}]}
    assert list(unknown_fields(validated(value, Sample))) == ["extra", "content.kept", "options.deeper"]


async def test_unknown_fields_are_told_or_refused() -> None:
    body = {"prompts": ["abc"], "max_tokens": 1, "top_q": 1, "a\r\nb: c": 2, "größe": 3}
    async with small_app(spoken=SPOKEN) as (_, client):
        response = await client.post("/plain/generate", json=body)
        assert response.status_code == 200
        assert response.headers["x-ignored-params"] == r"top_q, a??b: c, gr\xf6\xdfe"
        many = {"prompts": ["abc"], "max_tokens": 1, **{f"field_{n}": 1 for n in range(1000)}}
        assert len((await client.post("/plain/generate", json=many)).headers["x-ignored-params"]) <= 1024
    async with small_app(spoken=SPOKEN, is_strict=True) as (_, client):
        response = await client.post("/plain/generate", json=body)
        assert (response.status_code, response.json()["param"]) == (400, "top_q")


async def test_large_bodies_are_refused_before_they_are_read() -> None:
    async with small_app(spoken=SPOKEN, max_body_bytes=1000) as (_, client):
        announced = await client.post("/plain/generate", json={"prompts": ["a" * 1000]})
        assert (announced.status_code, announced.json()["code"]) == (413, "body_too_large")
        num_sent = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal num_sent
            for _ in range(1000):
                num_sent += 1
                yield b" " * 100

        headers = {"content-type": "application/json"}
        chunked = await client.post("/plain/generate", content=pieces(), headers=headers)
        assert chunked.status_code == 413
        assert num_sent < 20


BODIES = (
    *(ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, MessagesBody),
    *(OllamaChatBody, GenerateBody, CopyBody, PullBody, ShowBody),
)


def careless_parts(schema: Any) -> list[Any]:
    """Lists and mappings of a pydantic schema in which every element may be at fault, and each would be told."""
    if isinstance(schema, list | tuple):
        return [part for inner in schema for part in careless_parts(inner)]
    if not isinstance(schema, dict) or schema.get("type") == "function-before":
        return []
    kind, found = schema.get("type"), [part for inner in schema.values() for part in careless_parts(inner)]
    if kind == "list" and schema.get("items_schema", {"type": "any"})["type"] != "any" and not schema.get("fail_fast"):
        found.append(schema)
    if kind == "dict" and schema["values_schema"]["type"] != "any":
        found.append(schema)
    return found


def test_parts_in_which_each_element_would_be_told_are_found() -> None:
    assert len(careless_parts(Sample.__pydantic_core_schema__)) == 3


@pytest.mark.parametrize("model", BODIES, ids=lambda model: f"{model.__module__.split('.')[-2]}.{model.__name__}")
def test_of_a_body_no_more_than_one_fault_of_a_list_is_looked_for(model: type[BaseModel]) -> None:
    assert careless_parts(model.__pydantic_core_schema__) == []


@pytest.mark.parametrize(
    ("model", "value", "param", "message"),
    [
        (CompletionBody, {"prompt": [1] * 100_000 + ["a"]}, "prompt[100000]", "must be an integer, got 'a'"),
        (CompletionBody, {"prompt": ["a"] * 100_000 + [1]}, "prompt[100000]", "must be a string, got 1"),
        (CompletionBody, {"prompt": [[1] * 100_000 + ["a"]]}, "prompt[0][100000]", "must be an integer, got 'a'"),
        (CompletionBody, {"prompt": [None] * 100_000}, "prompt[0]", "must be"),
        (DetokenizeBody, {"tokens": ["a"] * 100_000}, "tokens[0]", "must be an integer, got 'a'"),
        (CompletionBody, {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(100_000)), "a")},
            "logit_bias.0", "a number"),
        (MessagesBody, {"model": "a", "max_tokens": 1, "messages": [1] * 100_000}, "messages[0]", "must be"),
        (OllamaChatBody, {"model": "a", "messages": [1] * 100_000}, "messages[0]", "must be an object"),
    ],
)  # fmt: skip
def test_a_fault_of_a_large_body_costs_little_memory(
    model: type[BaseModel], value: dict[str, Any], param: str, message: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match=message) as caught:
            validated(value, model)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.param == param


class _Name(str):
    """Counts how often two names are compared."""

    num_compared = 0

    def __eq__(self, other: object) -> bool:
        _Name.num_compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_doubled_name_is_found_in_one_look_at_each() -> None:
    names = [_Name(f"name {n}") for n in range(3000)]
    assert first_doubled(names) is None
    assert first_doubled([*names, _Name("name 7"), _Name("name 8")]) == "name 7"
    assert _Name.num_compared < 30_000


class _Where(BaseModel):
    threads: ClassVar[list[int]] = []
    text: str

    @field_validator("text")
    @classmethod
    def _note(cls, text: str) -> str:
        cls.threads.append(threading.get_ident())
        return text


@pytest.mark.parametrize("num_chars", [100, 1 << 20])
async def test_large_bodies_are_read_beside_the_event_loop(num_chars: int) -> None:
    content = json.dumps({"text": "a" * num_chars}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": content}

    async with small_app() as (app, _):
        scope = {"type": "http", "headers": [(b"content-type", b"application/json")], "app": app}
        scope["state"] = {"caller": Caller(request_id="1")}
        await read_body(Request(scope, receive), _Where)
    assert (_Where.threads[-1] == threading.get_ident()) is (num_chars == 100)
