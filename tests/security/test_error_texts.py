"""What errors tell in every dialect: the field and the limit. No path, no address, nothing of the program, no key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.fake_backend import FakeBackend
from support.served import SmallPool, small_app
from support.small_model import small_model
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, TuiliError
from tuili.server.api_keys import read_api_keys

KEY, USER_KEY = "sk-secret-admin-key", "sk-secret-user-key"
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "small", "messages": MESSAGES, "max_tokens": 4},
    "/v1/completions": {"model": "small", "prompt": "hello", "max_tokens": 4},
    "/tokenize": {"model": "small", "messages": MESSAGES},
    "/detokenize": {"model": "small", "tokens": [1]},
    "/v1/messages": {"model": "small", "messages": MESSAGES, "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": "small", "messages": MESSAGES},
    "/api/chat": {"model": "small", "messages": MESSAGES},
    "/api/generate": {"model": "small", "prompt": "hello"},
    "/api/show": {"model": "small"},
    "/api/pull": {"model": "small"},
    "/api/copy": {"source": "small", "destination": "other"},
    "/v1/models/load": {"model": "small"},
    "/v1/models/unload": {"model": "small"},
}
ANSWERING = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat", "/api/generate")
FORBIDDEN = {
    "a path": re.compile(
        r"(?<![\w/])/(?:home|tmp|root|usr|var|etc|opt|proc|dev|mnt|work|lib|nix)/|\.py\b|site-packages"
    ),
    "an address": re.compile(r"0x[0-9a-fA-F]{4,}"),
    "a traceback": re.compile(r"Traceback|File \"|line \d+, in "),
    "a class": re.compile(
        r"[A-Z][a-z]+(?:[A-Z][a-z]+)*(?:Error|Exception)\b|<class|<object| object at |\b[A-Z][a-z]+Body\b"
    ),
    "a module": re.compile(r"\b(?:tuili|pydantic|fastapi|starlette|uvicorn|msgspec|numpy|asyncio)\.[a-z_]+|pydantic"),
    "a key": re.compile(r"sk-secret"),
}
WRONG = [True, -1, 2**63, 1.5, "\x1b[31m'; DROP", [[]], ["x", 1], {"a": {"b": []}}]
RAW = [b"", b"{", b"[]", b"null", b"\xff", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 200, b'"\\ud800"', b'{"a":1e999}']
SECRET_CAUSE = RuntimeError("no such file /home/someone/.cache/x.py at 0x7fdeadbeef00 <object object at 0x1234>")


def check_text(text: str, where: object) -> None:
    for kind, pattern in FORBIDDEN.items():
        assert not (found := pattern.search(text)), f"{where}: {kind}: {found[0]!r} in {text}"


@pytest.fixture(autouse=True)
def _an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))
    monkeypatch.setenv("TUILI_OFFLINE", "1")


def _bad_bodies(path: str) -> Iterator[dict[str, Any]]:
    """Each field with values it cannot have, or left out."""
    body = BODIES[path]
    more = ("temperature", "stop", "options", "n", "logprobs", "system", "tools", "format", "keep_alive", "thinking")
    for field in (*body, *more):
        yield from ({**body, field: value} for value in WRONG)
        yield {name: value for name, value in body.items() if name != field}
    yield {**body, "model": "absent"}
    yield {**body, "prompt": "a" * 300, "messages": [{"role": "user", "content": "a" * 300}]}
    yield {**body, "chat_template": "{{ ''.__class__ }}", "template": "{{ cycler.__init__.__globals__ }}"}
    yield {**body, "chat_template": "{% for %}", "template": "{{ 1/0 }}"}


async def test_what_a_bad_request_is_told() -> None:
    num_errors = 0
    async with small_app(api_keys=read_api_keys([KEY])) as (_, client):
        client.headers["authorization"] = f"Bearer {KEY}"
        for path in BODIES:
            for number, body in enumerate(_bad_bodies(path)):
                asked = {**body, "stream": number % 2 == 0} if path in ANSWERING else body
                answer = await client.post(path, json=asked)
                if _is_error(answer):
                    num_errors += 1
                    check_text(answer.text, (path, asked))
            for raw in RAW:
                answer = await client.post(path, content=raw, headers={"content-type": "application/json"})
                assert answer.status_code == 400, (path, raw)
                check_text(answer.text, (path, raw))
    assert num_errors > 400


def _is_error(answer: httpx.Response) -> bool:
    assert answer.status_code != 500, (answer.request.url.path, answer.request.content, answer.text)
    return answer.status_code >= 400 or '"error"' in answer.text


async def test_what_those_who_may_not_are_told() -> None:
    keys = read_api_keys([f"{KEY} manage", f"{USER_KEY} infer"])
    async with small_app(api_keys=keys, max_body_bytes=1000) as (_, client):
        told = []
        for path in (*BODIES, "/v1/requests", "/absent", "/v1/absent", "/api/absent"):
            for headers in (
                {},
                {"authorization": "Bearer sk-secret-unknown"},
                {"authorization": f"Bearer {KEY}"},
                {"authorization": f"Bearer {USER_KEY}"},
                {"authorization": f"Bearer {USER_KEY}", "host": "evil.example"},
                {"authorization": f"Bearer {USER_KEY}", "origin": "http://evil.example"},
                {"authorization": f"Bearer {USER_KEY}", "content-type": "text/plain"},
            ):
                for method in ("POST", "PUT"):
                    for content in (b'{"a":1}', b"x" * 2000):
                        told.append(await client.request(method, path, content=content, headers=headers))
    for answer in told:
        assert answer.status_code in (400, 401, 403, 404, 405, 413, 415), answer.text
        check_text(answer.text, (answer.request.url.path, answer.request.headers))
    assert {401, 403, 404, 405, 413, 415} <= {answer.status_code for answer in told}


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_told_of_an_engine_that_failed(streams: bool) -> None:
    """Its own words are for the log."""
    backend = FakeBackend(error=SECRET_CAUSE, fail_on=set(range(1, 1000)))
    async with small_app(pool=SmallPool(small_model(backend))) as (_, client):
        for path in ANSWERING:
            answer = await client.post(path, json={**BODIES[path], "stream": streams})
            assert "error" in answer.text
            check_text(answer.text, path)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SECRET_CAUSE, 500),
        (OSError(2, "no such file", "/home/someone/model.gguf"), 500),
        (MemoryError("0x7fdeadbeef00"), 500),
        (EngineUnavailableError("loading", retry_after_s=3), 503),
        (InsufficientMemoryError("needs 5 MiB, 3 MiB are free"), 507),
        (TuiliError("the model could not be loaded"), 500),
    ],
)
async def test_what_is_told_of_a_bug(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int) -> None:
    async def load(*_: object, **__: object) -> None:
        raise error

    pool = SmallPool(small_model(FakeBackend()))
    monkeypatch.setattr(pool, "load", load)
    async with small_app(pool=pool) as (_, client):
        for path in (*ANSWERING, "/tokenize", "/v1/messages/count_tokens", "/v1/models/load"):
            answer = await client.post(path, json=BODIES[path])
            assert answer.status_code == status, answer.text
            check_text(answer.text, path)
            if status == 500 and not isinstance(error, TuiliError):
                assert answer.headers["x-request-id"] in answer.text
