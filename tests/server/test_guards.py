"""Who is let in: keys and scopes, hosts, origins, binds, media types."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.plain_dialect import plain_dialect
from support.served import small_app
from tuili.errors import InvalidRequestError
from tuili.server.api_keys import find_key, read_api_keys
from tuili.server.guards.bind import check_bind, is_loopback
from tuili.server.http_settings import HttpSettings

SPOKEN = (plain_dialect(),)
KEYS = read_api_keys(["user-key-1 infer", "admin-key-1", "other-key-1 infer"])
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BODY = {"prompts": ["abc"], "max_tokens": 1}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_key_opens_what_its_scopes_say() -> None:
    async with small_app(spoken=SPOKEN, api_keys=KEYS) as (_, client):
        none = await client.post("/plain/generate", json=BODY)
        assert (none.status_code, none.json()["code"]) == (401, "invalid_api_key")
        assert none.headers["www-authenticate"].startswith("Bearer")
        for headers in (bearer("user-key-1"), {"x-api-key": "user-key-1"}, {"authorization": "bearer  user-key-1 "}):
            assert (await client.post("/plain/generate", json=BODY, headers=headers)).status_code == 200
        proxied = {"authorization": "Basic cHJveHk6cGFzcw==", "x-api-key": "user-key-1"}
        assert (await client.post("/plain/generate", json=BODY, headers=proxied)).status_code == 200
        assert (await client.get("/v1/requests", headers=bearer("user-key-1"))).status_code == 403
        assert (await client.get("/v1/requests", headers=bearer("admin-key-1"))).status_code == 200


@pytest.mark.parametrize(
    "key", ["user-key-2", "", "' OR 1=1 --", "user-key-1\x00", "x" * 2**20, "ключ".encode(), "user-key-1 infer"]
)
async def test_other_keys_open_nothing(key: str | bytes) -> None:
    async with small_app(spoken=SPOKEN, api_keys=KEYS) as (_, client):
        value = b"Bearer " + (key if isinstance(key, bytes) else key.encode())
        response = await client.post("/plain/generate", json=BODY, headers={b"authorization": value})
        assert response.status_code == 401
        if len(key) > 4:
            assert (key if isinstance(key, str) else key.decode()) not in response.text
        basic = await client.post("/plain/generate", json=BODY, headers={"authorization": "Basic user-key-1"})
        assert basic.status_code == 401


async def test_what_is_no_route_needs_a_key_too() -> None:
    async with small_app(spoken=SPOKEN, api_keys=KEYS) as (_, client):
        for path in ("/elsewhere", "/plain/generate/", "//plain/generate", "/plain/%2e%2e/v1/requests", "/docs"):
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_keys_have_prefix_caches_of_their_own() -> None:
    salts = {key.cache_salt for key in KEYS}
    assert len(salts) == 3
    assert not any(key.key_id in key.cache_salt for key in KEYS)
    async with small_app(spoken=SPOKEN, api_keys=KEYS) as (app, client):
        body = {"prompts": ["abcdefgh" * 8], "max_tokens": 1}
        stats = next(iter(app.state.serving.pool.models.values())).client.stats
        for key in ("user-key-1", "other-key-1"):
            await client.post("/plain/generate", json=body, headers=bearer(key))
            assert stats().num_prefix_hits == 0
        await client.post("/plain/generate", json=body, headers=bearer("other-key-1"))
        assert stats().num_prefix_hits > 0


def test_keys_are_read_from_flags_and_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the team\n\nteam-key-1 infer\nboss-key-1 infer,manage\n")
    keys = read_api_keys(["flag-key-1"], file)
    assert [sorted(key.scopes) for key in keys] == [["infer", "manage"], ["infer"], ["infer", "manage"]]
    assert find_key(keys, b"team-key-1") == keys[1]
    assert find_key(keys, b"team-key-2") is None
    hashed = read_api_keys([f"sha256:{keys[1].digest.hex()} infer"])
    assert find_key(hashed, b"team-key-1") is not None


@pytest.mark.parametrize(
    "value", ["", "short", "with\ttab-key", "long-key" * 100, "good-key-1 read", "sha256:12", "schlüssel-eins"]
)
def test_keys_that_are_none_are_refused_without_being_shown(value: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_api_keys([value])
    assert value not in str(caught.value) or not value
    for content in (b"", b"# nothing\n", b"\xff\xfe", b"a-good-key\na-good-key\n", b"x" * (2 << 20)):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(InvalidRequestError):
            read_api_keys([], tmp_path / "keys")
    with pytest.raises(InvalidRequestError, match="No such file"):
        read_api_keys([], tmp_path / "none")


LOOPBACK_HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.1.2.3", "[::1]:8000", "localhost."]
FOREIGN_HOSTS = [
    "evil.example",
    "localhost.evil.com",
    "127.0.0.1.evil.com",
    "evil.com:8000",
    "192.168.1.5",
    "[fe80::1]",
    "0.0.0.0",
    "localhost:8000@evil.com",
    "localhost evil",
    "",
    "127.0.0.1:99999999",
    "http://localhost",
]


@pytest.mark.parametrize("method", METHODS)
async def test_a_loopback_bind_knows_only_itself(method: str) -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        for host in LOOPBACK_HOSTS:
            assert (await client.request(method, "/health", headers={"host": host})).status_code in (200, 405), host
        for host in FOREIGN_HOSTS:
            assert (await client.request(method, "/health", headers={"host": host})).status_code == 403, host


async def test_a_lan_bind_knows_addresses_local_names_and_those_it_was_told() -> None:
    settings = {"host": "0.0.0.0", "api_keys": KEYS, "allowed_hosts": ("Chat.Example.com",)}
    async with small_app(spoken=SPOKEN, **settings) as (_, client):
        own = ["192.168.1.5:8000", "[fe80::1]:8000", "tuili", "host.docker.internal:8000", "nas.local", "localhost"]
        for host in (*own, "chat.example.com:443"):
            assert (await client.get("/health", headers={"host": host})).status_code == 200, host
        for host in ("evil.example", "localhost.evil.com", "192.168.1.5.evil.com", "internal.evil.com"):
            assert (await client.get("/health", headers={"host": host})).status_code == 403, host
        assert (await client.get("/metrics")).status_code == 401
    async with small_app(spoken=SPOKEN, allowed_hosts=("*",)) as (_, client):
        assert (await client.get("/health", headers={"host": "evil.example"})).status_code == 200
        assert (await client.get("/metrics", headers={"host": "evil.example"})).status_code == 200


OWN_ORIGINS = ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:9", "tauri://localhost", "app://obsidian.md"]
FOREIGN_ORIGINS = [
    "http://evil.example",
    "http://localhost.evil.com",
    "http://127.0.0.1.evil.com",
    "http://localhost@evil.com",
    "http://evil.com#localhost",
    "null",
    "",
    "file://",
    "http://[",
    "https://evil.com/http://localhost",
    "http://192.168.1.5:3000",
]


@pytest.mark.parametrize("method", METHODS)
async def test_pages_from_elsewhere_are_refused(method: str) -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        for origin in FOREIGN_ORIGINS:
            response = await client.request(method, "/health", headers={"origin": origin})
            assert response.status_code == 403, origin
            assert "access-control-allow-origin" not in response.headers


async def test_pages_that_may_call_are_told_so() -> None:
    async with small_app(spoken=SPOKEN, allowed_origins=("https://chat.example",)) as (_, client):
        for origin in (*OWN_ORIGINS, "https://chat.example", "http://localhost"):
            response = await client.post("/plain/generate", json=BODY, headers={"origin": origin})
            assert response.status_code == 200, origin
            assert response.headers["access-control-allow-origin"] == origin
            assert response.headers["vary"] == "origin"
            assert "access-control-allow-credentials" not in response.headers
        failed = await client.get("/plain/nothing", headers={"origin": "https://chat.example"})
        assert failed.status_code == 404
        assert failed.headers["access-control-allow-origin"] == "https://chat.example"


async def test_preflights_are_answered_without_a_key() -> None:
    headers = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    settings = {"allowed_origins": ("https://chat.example",), "api_keys": KEYS}
    async with small_app(spoken=SPOKEN, **settings) as (_, client):
        response = await client.options("/plain/generate", headers=headers)
        assert response.status_code == 204
        assert response.headers["access-control-allow-headers"] == "authorization, content-type"
        assert "POST" in response.headers["access-control-allow-methods"]
        foreign = await client.options("/plain/generate", headers=headers | {"origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert (await client.options("/plain/generate", headers={"origin": "https://chat.example"})).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/problem+json"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/jsonp"}, 415),
        ({}, 415),
        ({"content-type": "application/x-www-form-urlencoded", "user-agent": "curl/8.5.0"}, 200),
        ({"content-type": "text/plain", "user-agent": "curl/8.5.0"}, 415),
        (
            {
                "content-type": "application/x-www-form-urlencoded",
                "user-agent": "curl/8.5.0",
                "origin": "http://localhost",
            },
            415,
        ),
    ],
)
async def test_forms_of_web_pages_are_no_requests(headers: dict[str, str], status: int) -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        content = b'{"prompts": ["abc"], "max_tokens": 1}'
        response = await client.post("/plain/generate", content=content, headers=headers)
        assert response.status_code == status


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("/run/tuili.sock", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.5", False),
        ("myhost", False),
    ],
)
def test_beyond_the_loopback_a_key_is_needed(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
    check_bind(HttpSettings(host=host, api_keys=KEYS))
    check_bind(HttpSettings(host=host, is_insecure=True))
    if is_local:
        check_bind(HttpSettings(host=host))
    else:
        with pytest.raises(InvalidRequestError, match="--insecure"):
            check_bind(HttpSettings(host=host))
