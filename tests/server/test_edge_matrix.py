"""Every field of every body, with every value that programs stumble over: answered or refused, never broken."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import gguf_models
from support.served import SmallPool, small_app
from support.small_model import small_model
from tuili.errors import MAX_MESSAGE_CHARS
from tuili.server.app import create_app
from tuili.server.http_settings import HttpSettings
from tuili.server.openapi import document

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

MESSAGES = [{"role": "user", "content": "ab"}]
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"prompt": "ab", "max_tokens": 2},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/api/generate": {"prompt": "ab", "stream": False, "options": {"num_predict": 2}},
    "/api/chat": {"messages": MESSAGES, "stream": False, "options": {"num_predict": 2}},
    "/api/show": {},
    "/tokenize": {"prompt": "ab"},
    "/detokenize": {"tokens": [1]},
    "/v1/models/load": {},
    "/v1/models/unload": {},
}
# These need a store with files, and are in their dialect's tests; or they are another name of one that is here.
ELSEWHERE = {"/api/pull", "/api/copy", "/chat/completions"}
RAW_NUMBERS = [
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "-1e308", "1e-320", "-0.0", "0.5", "1.0", "0", "-1",
    "-2", "1", "2", "65535", "2147483647", "2147483648", "-2147483649", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" + "0" * 40, "9" * 5000,
]  # fmt: skip
RAW_OTHERS = [
    "null", "true", "false", '""', '"1"', '"\\u0000"', '"\\ud800"', '"\\u202e\\n\\u001b[31m"', json.dumps("x" * 5000),
    "[]", "[[]]", "[null]", '[{"a": 1}]', "[1, -1, 99999999999]", '["a", "a"]',
    "{}", '{"a": null}', '{"a": {"b": [1]}}',
    '{"-1": 1}', '{"1": 1e5}', "[" * 70 + "]" * 70, json.dumps(["x"] * 2000), json.dumps(list(range(2000))),
]  # fmt: skip
NTH = int(os.environ.get("TUILI_EDGE_NTH", "3"))  # a field gets each so manieth value, its neighbour the ones beside
MAX_ANSWER_S = 20  # of a machine that is busy with other things; usually it takes milliseconds
NUMBERS_IN = ("integer", "number")


def fields(schema: dict[str, Any], shared: dict[str, Any]) -> dict[str, bool]:
    """The names of a body's fields, with those of Ollama's options behind a dot; whether a number may stand there."""
    found: dict[str, bool] = {}
    for name, entry in schema["properties"].items():
        text = json.dumps(entry)
        found[name] = any(f'"type": "{kind}"' in text for kind in NUMBERS_IN)
        if name == "options":
            for alternative in entry.get("anyOf", [entry]):
                inner = shared.get(alternative.get("$ref", "").rpartition("/")[2], {})
                found |= {f"options.{key}": True for key in inner.get("properties", {})}
    return found


def bodies() -> dict[str, dict[str, bool]]:
    made = document(create_app(HttpSettings(), _NoPool()), "0")  # type: ignore[arg-type]
    schemas = {
        path: item["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, item in made["paths"].items()
        if "requestBody" in item.get("post", {})
    }
    return {path: fields(schema, made["components"]["schemas"]) for path, schema in schemas.items()}


class _NoPool:
    def loaded(self) -> tuple[()]:
        return ()


def test_every_body_is_in_the_matrix() -> None:
    assert {path for path in bodies() if path not in ELSEWHERE} == set(BASES)


def raw_body(base: dict[str, Any], name: str, raw: str) -> bytes:
    """The body with that text as the field's value."""
    outer, _, inner = name.partition(".")
    rest = {key: value for key, value in base.items() if key != outer}
    if inner:
        return f'{{"{outer}": {{"{inner}": {raw}}}, {json.dumps(rest)[1:]}'.encode()
    return f'{{{json.dumps(rest)[1:-1]}{", " if rest else ""}"{name}": {raw}}}'.encode()


async def check(client: httpx.AsyncClient, path: str, name: str, raw: str) -> int:
    content = raw_body({"model": "small", **BASES[path]}, name, raw)
    begun_s = time.monotonic()
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    said = f"{path}: {name} = {raw[:40]}: {response.status_code} {response.text[:200]}"
    assert response.status_code in (200, 400, 404), said
    assert time.monotonic() - begun_s < MAX_ANSWER_S, said
    if response.status_code != 200:
        assert len(response.content) < 2 * MAX_MESSAGE_CHARS + 300, said
        assert "0x" not in response.text, said
        assert isinstance(response.json()["error"], str | dict), said
    elif raw in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000):
        raise AssertionError(said)
    return response.status_code


@pytest.mark.parametrize("path", BASES)
async def test_every_value_is_taken_or_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))
    (tmp_path / "small.gguf").write_bytes(gguf_models.seeds()["llama"].encode())
    pool = SmallPool(small_model(), path=tmp_path / "small.gguf")
    async with small_app(pool=pool) as (app, client):
        statuses = [
            await check(client, path, name, raw)
            for place, (name, is_number) in enumerate(bodies()[path].items())
            for raw in (*(RAW_NUMBERS if is_number else RAW_NUMBERS[:4]), *RAW_OTHERS)[-place % NTH :: NTH]
        ]
        assert 400 in statuses
        assert (await client.post(path, json={"model": "small", **BASES[path]})).status_code == 200
        model = app.state.serving.pool.models["small"]
        stats = model.client.stats()
        assert stats.num_free_blocks == stats.num_blocks
        assert app.state.serving.running() == ()
        assert model.num_active == 0
