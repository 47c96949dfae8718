"""Deny by default: every route of the real application, with and without keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from support.served import SmallPool, small_app
from tuili.server.api_keys import read_api_keys
from tuili.server.app import create_app
from tuili.server.dialect import scope_of
from tuili.server.http_settings import HttpSettings

KEYS = read_api_keys(["user-key-1 infer", "admin-key-1 manage"])
HEALTH = {("GET", "/health"), ("GET", "/v1/health"), ("GET", "/ping"), ("POST", "/ping")}
PUBLIC = HEALTH | {("GET", "/ready"), ("GET", "/"), ("HEAD", "/")}
MANAGE = {
    ("GET", "/v1/requests"),
    ("POST", "/v1/models/load"),
    ("POST", "/v1/models/unload"),
    ("GET", "/slots"),
    ("POST", "/slots/{slot}"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/lora-adapters"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("POST", "/api/pull"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/create"),
    ("POST", "/api/push"),
    ("HEAD", "/api/blobs/{digest}"),
    ("POST", "/api/blobs/{digest}"),
}


def all_routes(**settings: object) -> Iterator[tuple[str, str, str | None]]:
    """(method, path, scope) of everything that answers."""
    for route in create_app(HttpSettings(**settings), SmallPool()).routes:
        assert isinstance(route, APIRoute)
        for method in sorted(route.methods):
            yield method, route.path, scope_of(route.openapi_extra)


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))


def test_what_is_public_and_what_manages_is_known() -> None:
    routes = list(all_routes(host="0.0.0.0", api_keys=KEYS))
    assert {(method, path) for method, path, scope in routes if scope == "public"} == PUBLIC
    assert {(method, path) for method, path, scope in routes if scope == "manage"} == MANAGE
    assert ("GET", "/metrics", "public") in list(all_routes())


async def test_every_other_route_needs_a_key_and_the_right_one() -> None:
    async with small_app(host="0.0.0.0", api_keys=KEYS) as (_, client):
        for method, path, scope in all_routes(host="0.0.0.0", api_keys=KEYS):
            url = path.replace("{model:path}", "small").replace("{digest}", "sha256:0")
            statuses = [
                (await client.request(method, url, headers=headers)).status_code
                for headers in (
                    {},
                    {"x-api-key": "wrong-key-1"},
                    {"x-api-key": "user-key-1"},
                    {"x-api-key": "admin-key-1"},
                )
            ]
            if scope == "public":
                assert set(statuses) == {200}, url
                continue
            assert statuses[:2] == [401, 401], url
            assert (statuses[2] == 403) is (scope == "manage"), url
            assert (statuses[3] == 403) is (scope == "infer"), url
            assert statuses[3 if scope == "manage" else 2] not in (401, 403), url


@pytest.mark.parametrize(
    "path", ["/v1/Models", "/V1/models", "//v1/models", "/v1//models", "/v1/models/", "/v1/./models", "/v1/models%0A"]
)
async def test_no_spelling_of_a_path_goes_around_the_keys(path: str) -> None:
    async with small_app(api_keys=KEYS) as (_, client):
        assert (await client.get(f"http://localhost{path}")).status_code in (400, 401)


def spellings(path: str) -> tuple[str, ...]:
    """Ways to write a path that are not the one its route has."""
    more = (path.upper(), f"/{path}", f"{path}/", path.replace("/", "//"), path.replace("/", "%2f"))
    return (*more, *(f"{path}{end}" for end in ("%0A", "%0D", "%00", "%7F", "%20", "%23", "/.", "?a=b", "%0A?a=b")))


@pytest.mark.parametrize("root_path", ["", "/models"])
async def test_no_spelling_of_a_managing_route_answers_a_key_that_may_not_manage(root_path: str) -> None:
    async with small_app(host="0.0.0.0", api_keys=KEYS, root_path=root_path) as (_, client):
        for method, path in sorted(MANAGE):
            written = root_path + path.replace("{digest}", "sha256:0")
            for url in (written, *spellings(written)):
                for asked in (method, "HEAD", "OPTIONS"):
                    response = await client.request(
                        asked, f"http://localhost{url}", headers={"x-api-key": "user-key-1"}
                    )
                    if any(code in url for code in ("%0A", "%0D", "%00", "%7F")):
                        assert response.status_code == 400, (asked, url)
                        assert asked == "HEAD" or "control character" in response.text
                    else:
                        assert response.status_code in (307, 403, 404, 405), (asked, url)


async def test_a_path_that_a_proxy_puts_before_all_changes_no_scope_and_no_words() -> None:
    async with small_app(host="0.0.0.0", api_keys=KEYS, root_path="/llm") as (_, client):
        assert (await client.get("/llm/health")).status_code == 200
        assert (await client.get("/llm/v1/models")).status_code == 401
        admin = {"x-api-key": "admin-key-1"}
        assert (await client.get("/llm/v1/requests", headers=admin)).status_code == 200
        refused = await client.post("/llm/v1/messages", headers=admin)
        assert refused.json()["type"] == "error"  # as Anthropic's clients know it
        method = await client.put("/llm/v1/models/load", headers=admin)
        assert (method.status_code, method.headers["allow"]) == (405, "POST")


async def test_methods_that_a_path_has_not_are_answered_with_those_it_has() -> None:
    async with small_app() as (_, client):
        response = await client.put("/api/blobs/0")
        assert (response.status_code, response.headers["allow"]) == (405, "HEAD, POST")
        assert (await client.request("OPTIONS", "/v1/models")).headers["allow"] == "GET"
