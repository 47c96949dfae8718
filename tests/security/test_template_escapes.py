"""No chat template, a caller's or a model's own, gets out of its sandbox on any route that renders one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.fake_backend import FakeBackend
from support.served import SmallPool, small_app
from support.small_model import small_model
from support.template_escapes import ESCAPES, canary_escapes
from tuili.errors import ChatTemplateError
from tuili.text.chat_template import ChatTemplate

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

VARIABLE, SECRET = "TUILI_TEST_CANARY", "sesame0pen"
MESSAGES = [{"role": "user", "content": "hello there"}]
GOOD = {"messages": MESSAGES, "max_tokens": 4, "temperature": 0}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that holds the secret, as a variable of the environment does. Nothing is made beside it."""
    monkeypatch.setenv(VARIABLE, SECRET)
    path = tmp_path / "canary"
    path.write_text(SECRET)
    yield path
    assert list(tmp_path.iterdir()) == [path]


def _callers(template: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every route that takes a template of the caller's."""
    yield "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "chat_template": template}
    yield "/tokenize", {"messages": MESSAGES, "chat_template": template, "return_token_strs": True}
    yield "/api/generate", {"model": "small", "prompt": "hello", "template": template, "stream": False}


def _models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every route that renders the model's own."""
    yield "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}
    yield "/tokenize", {"messages": MESSAGES, "return_token_strs": True}
    yield "/v1/messages", {"model": "small", "messages": MESSAGES, "max_tokens": 1}
    yield "/v1/messages/count_tokens", {"model": "small", "messages": MESSAGES, "system": "be brief"}
    yield "/api/chat", {"model": "small", "messages": MESSAGES, "stream": False, "options": {"num_predict": 1}}
    yield "/api/generate", {"model": "small", "prompt": "hello", "system": "be brief", "options": {"num_predict": 1}}


async def test_every_route_that_renders_is_tried() -> None:
    """Those whose bodies have messages, or a text beside which a template puts more."""
    async with small_app() as (_, client):
        paths = (await client.get("/openapi.json")).json()["paths"]
    fields = {
        path: item["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"].keys()
        for path, item in paths.items()
        if "requestBody" in item.get("post", {}) and f"/v1{path}" not in paths  # else it is another name for that
    }
    templates = {path for path, names in fields.items() if names & {"template", "chat_template"}}
    rendering = {path for path, names in fields.items() if "messages" in names} | templates
    assert {path for path, _ in _callers("")} == templates
    assert {path for path, _ in _models()} == rendering


async def _harmless(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code in (200, 400), (path, body, answer.text)
    if "tokens" in (told := answer.json() if path == "/tokenize" else {}):
        assert SECRET not in "".join(told["token_strs"])
    for secret in (SECRET, "Traceback", " at 0x", "environ(", "root:"):
        assert secret not in answer.text.replace(str(body.get("template") or body.get("chat_template")), "")


async def test_callers_templates_reach_nothing(canary: Path) -> None:
    templates = [*ESCAPES, *canary_escapes(VARIABLE, canary)]
    assert len(templates) > 140
    async with small_app() as (_, client):
        wanted = (await client.post("/v1/chat/completions", json=GOOD)).json()["choices"]
        for template in templates:
            for path, body in _callers(template):
                await _harmless(client, path, body)
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=GOOD)).json()["choices"] == wanted


async def test_models_templates_reach_nothing(canary: Path) -> None:
    """Those that are no templates at all are refused as the model is loaded."""
    pool = SmallPool(small_model(FakeBackend()))
    model = pool.models["small"]
    good, num_served = model.front, 0
    async with small_app(pool=pool) as (_, client):
        wanted = (await client.post("/v1/chat/completions", json=GOOD)).json()["choices"]
        for template in [*ESCAPES, *canary_escapes(VARIABLE, canary)]:
            try:
                model.front = replace(good, chat_template=ChatTemplate(template))
            except ChatTemplateError:
                continue
            num_served += 1
            for path, body in _models():
                await _harmless(client, path, body)
        model.front = good
        assert (await client.post("/v1/chat/completions", json=GOOD)).json()["choices"] == wanted
    assert num_served > 80


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "add_generation_prompt", "messages", "tools"])
async def test_template_arguments_replace_nothing_of_the_requests(name: str) -> None:
    async with small_app() as (_, client):
        for path in ("/v1/chat/completions", "/tokenize"):
            body = {"messages": MESSAGES, "chat_template_kwargs": {name: True}}
            answer = await client.post(path, json=body)
            assert answer.status_code == 400, (path, answer.text)
            assert name in answer.text


async def test_a_bomb_ends_soon_and_others_are_answered(canary: Path) -> None:
    bombs = (
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    )
    async with small_app() as (_, client):
        for bomb in bombs:
            for path, body in _callers(bomb):
                assert (await client.post(path, json=body)).status_code == 400, (path, bomb)
        assert (await client.post("/v1/chat/completions", json=GOOD)).status_code == 200
