"""The application as a whole: routing, errors in the dialect's words, operations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fastapi import APIRouter

from support.fake_backend import FakeBackend
from support.plain_dialect import plain_dialect
from support.served import PooledModel, SmallPool, small_app, small_model
from tuili.errors import ModelFileError
from tuili.server import ops
from tuili.server.app import create_app
from tuili.server.dialect import Dialect
from tuili.server.http_settings import HttpSettings

SPOKEN = (plain_dialect(),)


async def test_a_request_is_answered() -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        response = await client.post("/plain/generate", json={"prompts": ["abc"], "max_tokens": 3})
        assert response.status_code == 200
        assert len(response.json()["0.0"]) == 3
        assert len(response.headers["x-request-id"]) == 32


async def test_errors_are_told_in_the_words_of_the_dialect_asked() -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        missing = await client.get("/plain/nothing")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert missing.json()["id"] == missing.headers["x-request-id"]
        method = await client.put("/plain/generate")
        assert (method.status_code, method.headers["allow"]) == (405, "POST")
        elsewhere = await client.get("/elsewhere")
        assert elsewhere.json()["error"]["code"] == "not_found"
        model = await client.post("/plain/generate", json={"prompts": ["abc"], "model": "none"})
        assert (model.status_code, model.json()["code"]) == (404, "model_not_found")


async def test_a_bug_tells_the_request_id_and_nothing_else() -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        response = await client.get("/plain/crash")
        assert response.status_code == 500
        assert response.headers["x-should-retry"] == "false"
        assert "secret" not in response.text
        assert "KeyError" not in response.text
        assert response.headers["x-request-id"] in response.text


def test_a_route_without_a_scope_is_refused() -> None:
    router = APIRouter()
    router.get("/open")(test_a_route_without_a_scope_is_refused)
    dialect = Dialect(name="open", prefixes=("/open",), router=router, render_error=lambda error, _: b"")
    with pytest.raises(ValueError, match="does not say which scope"):
        create_app(HttpSettings(), SmallPool(), spoken=[dialect])


@pytest.mark.parametrize(
    ("failure", "told"), [(ModelFileError("a: damaged"), "a: damaged"), (KeyError("x"), "the log")]
)
async def test_readiness_tells_why_models_did_not_load(failure: Exception, told: str) -> None:
    """Under a host of its own, which nobody tells, the application goes on."""

    class Broken(SmallPool):
        async def start(self) -> None:
            raise failure

    async with small_app(spoken=SPOKEN, pool=Broken()) as (_, client):
        response = await client.get("/ready")
        assert response.status_code == 503
        assert f"models named at start could not be loaded: {told}" in response.text
        assert (await client.get("/health")).status_code == 200


async def test_a_server_of_several_models_is_ready_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SmallPool(small_model(FakeBackend()))
    pool.models["other"] = PooledModel(pool.models["small"].pipeline)
    pool.models["other"].name = "other"
    faults = {"small": "the engine is failed"}
    monkeypatch.setattr(ops, "engine_fault", lambda served: faults.get(served.name))
    async with small_app(spoken=SPOKEN, pool=pool) as (_, client):
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (
            200,
            {"status": "ready", "models": ["other"], "unready": {"small": "the engine is failed"}},
        )
        faults["other"] = "the engine is silent"
        ready = await client.get("/ready")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "2")
        assert "model small: the engine is failed; model other: the engine is silent" in ready.text


async def test_the_cache_is_told_as_large_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_app() as (app, client):
        (model,) = app.state.serving.pool.loaded()
        at_first = SimpleNamespace(block_size=16, kv_cache_dtype="bfloat16", num_blocks=(10**6,), cache_bytes=7)
        monkeypatch.setattr(model.client, "facts", at_first, raising=False)
        told = (await client.get("/metrics")).text
        assert f'num_gpu_blocks="{sum(model.client.stats().num_blocks)}"' in told
