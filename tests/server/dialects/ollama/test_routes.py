"""The routes over a model that starts in no time: what is asked of the server, and how it refuses."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from support.fake_backend import FakeBackend
from support.index_server import serving, tiny_model
from support.served import PooledModel, SmallPool, small_app
from support.shop import Shop
from support.small_model import small_model
from tuili.cli.remote.server_view import render_models
from tuili.runtime.pool.memory_plan import DevicePart, MemoryPlan
from tuili.server.dialects.ollama.names import model_name, shown_name
from tuili.store import store as store_module


def lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *(("a", "a"), ("a:latest", "a"), ("a:1", "a:1"), ("library/a:latest", "a")),
        *(("registry.ollama.ai/library/a:7b", "a:7b"), ("mine:latest", "mine:latest"), ("org/m:latest", "org/m")),
    ],
)
def test_names_as_clients_write_them(written: str, name: str) -> None:
    assert model_name(written, {"mine:latest"}) == name


def test_names_are_shown_with_a_tag() -> None:
    assert [shown_name(name) for name in ("a", "a:1", "org/m")] == ["a:latest", "a:1", "org/m:latest"]


async def test_a_stream_and_a_body_say_the_same() -> None:
    body = {"model": "small:latest", "prompt": "abc", "options": {"temperature": 0, "num_predict": 9, "top_k": 0}}
    async with small_app() as (_, client):
        whole = (await client.post("/api/generate", json={**body, "stream": False})).json()
        streamed = await client.post("/api/generate", json=body)
    parts = lines(streamed.content)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert "".join(part["response"] for part in parts) == whole["response"]
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["context"] == whole["context"]
    assert whole["model"] == "small:latest"
    assert (whole["done_reason"], whole["eval_count"]) == ("length", 9)
    assert whole["total_duration"] >= whole["eval_duration"] + whole["prompt_eval_duration"] > 0


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_without_a_prompt_models_are_loaded_and_unloaded(path: str) -> None:
    async with small_app() as (_, client):
        loaded = (await client.post(path, json={"model": "small"})).json()
        unloaded = (await client.post(path, json={"model": "small", "keep_alive": 0, "stream": False})).json()
        missing = await client.post(path, json={"model": "absent"})
    assert (loaded["done"], loaded["done_reason"], unloaded["done_reason"]) == (True, "load", "unload")
    assert (missing.status_code, missing.json()) == (404, {"error": "there is no model 'absent'"})


async def test_what_has_no_effect_is_named() -> None:
    body = {"model": "small", "prompt": "a", "stream": False, "other": 1, "options": {"num_gpu": 1, "new": 2}}
    async with small_app() as (_, client):
        answer = await client.post("/api/generate", json=body)
    assert sorted(answer.headers["x-ignored-params"].split(", ")) == ["options.new", "options.num_gpu", "other"]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/api/generate", {"prompt": "a"}, "model is missing"),
        ("/api/generate", {"model": "small", "prompt": 1}, "prompt must be a string"),
        ("/api/generate", {"model": "small", "prompt": "a", "suffix": "b"}, "suffix is not implemented"),
        ("/api/generate", {"model": "small", "prompt": "a", "keep_alive": "soon"}, "keep_alive must be"),
        ("/api/generate", {"model": "small", "prompt": "a", "options": {"top_p": 2}}, "options.top_p must be"),
        ("/api/generate", {"model": "small", "prompt": "a" * 500}, "prompt has 506 tokens; the context holds 128"),
        ("/api/chat", {"model": "small", "messages": [{"role": "x", "content": "a"}]}, "messages[0].role must be"),
        ("/api/chat", {"model": "small", "messages": [], "tools": [1]}, "tools is not implemented"),
        ("/api/embed", {"model": "small", "input": "a"}, "/api/embed is not implemented: embeddings"),
        ("/api/create", {"model": "small"}, "/api/create is not implemented"),
        ("/api/push", {"model": "small"}, "/api/push is not implemented"),
        ("/api/blobs/sha256:00", {}, "/api/blobs is not implemented"),
        ("/api/me", {}, "/api/me is not implemented: there are no accounts"),
        ("/api/experimental/web_search", {}, "/api/experimental/web_search is not implemented"),
        ("/api/show", {}, "model is missing"),
        ("/api/pull", {}, "model is missing"),
    ],
)
async def test_refusals_are_one_text(path: str, body: dict[str, Any], told: str) -> None:
    async with small_app() as (_, client):
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert told in answer.json()["error"]


async def test_of_a_model_whose_file_has_vanished_only_what_was_in_it_is_missing() -> None:
    async with small_app() as (_, client):
        for verbose in (True, False):
            shown = await client.post("/api/show", json={"model": "small", "verbose": verbose})
            assert (shown.status_code, shown.json()) == (404, {"error": "small.gguf: removed from the disk"})
        for path in ("/api/tags", "/api/ps"):
            (model,) = (await client.get(path)).json()["models"]
            assert (model["name"], model["details"]) == ("small:latest", {})
        (entry,) = (await client.get("/v1/models")).json()["data"]
        assert (await client.get("/v1/models/small")).json() == entry
        assert (await client.post("/api/generate", json={"model": "small", "stream": False})).status_code == 200


async def test_the_greeting() -> None:
    async with small_app() as (_, client):
        assert (await client.get("/")).text == "Ollama is running"
        assert (await client.head("/")).status_code == 200
        page = await client.get("/", headers={"accept": "text/html,*/*"})
        assert "/v1" in page.text
        assert page.headers["content-type"].startswith("text/html")
        for path in ("/api/tags", "/api/version"):
            assert (await client.head(path)).status_code == 200


async def test_loaded_models_are_listed() -> None:
    async with small_app() as (_, client):
        (model,) = (await client.get("/api/ps")).json()["models"]
    assert (model["name"], model["context_length"], model["size"], model["size_vram"]) == ("small:latest", 128, 6, 0)
    assert model["expires_at"] > "2100"


async def test_what_lies_on_each_gpu_is_told() -> None:
    sizes = {"cpu": 1 << 20, "cuda:0": 3 << 20, "cuda:1": 5 << 20}
    parts = [DevicePart(device=device, weights=size - 1, kv_cache=1, workspace=0) for device, size in sizes.items()]
    pool = SmallPool(small_model())
    pool.models["small"].plan = MemoryPlan(max_model_len=128, cache_bytes=1, parts=tuple(parts))
    async with small_app(pool=pool) as (_, client):
        (model,) = (await client.get("/api/ps")).json()["models"]
        metrics = (await client.get("/metrics")).text
    assert model["size_vram"] == 8 << 20
    assert {name: found["size"] for name, found in model["devices"].items()} == sizes
    assert model["devices"]["cuda:1"]["kv_cache"] == 1
    assert "9.0 MiB (cuda:0 3.0 MiB, cuda:1 5.0 MiB)" in render_models([model | {"size": 9 << 20}])
    clears_the_screen = {"\x1b[2J": {"size": 1}}
    assert "\x1b" not in render_models([model | {"devices": clears_the_screen}]), "a server of somebody else's"
    labels = 'device="cuda:1",kind="weights",model_name="small"'
    assert f"tuili:model_memory_bytes{{{labels}}} 5.242879e+06" in metrics


async def test_models_are_pulled_copied_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))
    with serving() as index:
        shop = Shop(tmp_path, index)
        shop.add(tiny_model(bytes(100_000)))
        monkeypatch.setattr(store_module, "discovered_sources", lambda: {"pypi": shop.source})
        monkeypatch.setattr(store_module.Store.__init__, "__defaults__", (None, shop.catalogue))
        pool = SmallPool(small_model())
        monkeypatch.setattr(pool, "unload", unloaded := AsyncMock())  # it knows none of the stored
        async with small_app(pool=pool) as (_, client):
            statuses = lines((await client.post("/api/pull", json={"model": "tiny"})).content)
            again = (await client.post("/api/pull", json={"name": "tiny:latest", "stream": False})).json()
            missing = await client.post("/api/pull", json={"model": "absent"})
            copied = await client.post("/api/copy", json={"source": "tiny:latest", "destination": "mine:latest"})
            names = [files.name for files in shop.store.list()]
            gone = await client.request("DELETE", "/api/delete", json={"model": "absent"})
            deleted = await client.request("DELETE", "/api/delete", json={"name": "tiny:1"})
            left = [files.name for files in shop.store.list()]
            last = await client.request("DELETE", "/api/delete", json={"model": "mine:latest"})
            again_gone = await client.request("DELETE", "/api/delete", json={"model": "mine"})
    assert (statuses[-1], again) == ({"status": "success"}, {"status": "success"})
    (wheel,) = index.files
    pulled = [status for status in statuses if status.get("digest") == wheel]
    assert pulled[-1]["completed"] == pulled[-1]["total"] == len(index.files[wheel])
    assert (missing.status_code, gone.status_code, copied.status_code) == (404, 404, 200)
    assert names == ["mine", "tiny:1"]
    assert (deleted.status_code, deleted.content, left) == (200, b"", ["mine"])
    assert [call.args for call in unloaded.await_args_list] == [("tiny:1",), ("mine",)]  # before its files go
    assert (last.status_code, again_gone.status_code, shop.store.list()) == (200, 404, ())
    assert list((tmp_path / "blobs").iterdir()) == []  # with the last name go the files


async def test_what_is_loaded_is_asked_in_the_event_loop_alone(smollm2_gguf: Path) -> None:
    pool = SmallPool(small_model(FakeBackend()), path=smollm2_gguf)
    threads: list[int] = []
    loaded = pool.loaded

    def noted() -> tuple[PooledModel, ...]:
        threads.append(threading.get_ident())
        return loaded()

    pool.loaded = noted  # type: ignore[method-assign]
    async with small_app(pool=pool) as (_, client):
        assert (await client.post("/api/show", json={"model": "small"})).status_code == 200
    assert set(threads) == {threading.get_ident()}


async def test_a_name_with_a_tag_given_at_start_is_known_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))
    pool = SmallPool(small_model(FakeBackend()))
    pool.models = {"my:latest": pool.models["small"]}
    monkeypatch.setattr(pool, "loaded", lambda: ())
    async with small_app(pool=pool) as (_, client):
        answer = await client.post("/api/generate", json={"model": "my:latest", "prompt": "a", "stream": False})
        deleted = await client.request("DELETE", "/api/delete", json={"model": "my:latest"})
        copied = await client.post("/api/copy", json={"source": "my:latest", "destination": "other"})
    assert answer.status_code == 200
    for refused in (deleted, copied):
        assert refused.status_code == 404
        assert "a name given as the server was started" in refused.json()["error"]
