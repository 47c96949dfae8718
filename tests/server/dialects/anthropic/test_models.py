"""Models as the `anthropic` package lists them, page by page, and as OpenAI's clients do at the same path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import anthropic
import httpx
import pytest

from support.fake_backend import FakeBackend
from support.served import Listening, SmallPool, listening, small_app, small_model
from tuili.runtime.pool.served_model import ModelCard
from tuili.server.api_keys import read_api_keys

VERSION = {"anthropic-version": "2023-06-01"}
NAMES = [f"m{i:02}" for i in range(45)]


class Shelf(SmallPool):
    """Has forty-five models, of which the first has an alias."""

    def cards(self) -> tuple[ModelCard, ...]:
        card = super().card("small")
        named = [replace(card, name=name, aliases=(), is_loaded=False, max_model_len=None) for name in NAMES[1:]]
        return (replace(card, name=NAMES[0], aliases=("alias",)), *named)


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening(pool=Shelf(small_model(FakeBackend()))) as server:
        yield server


def test_every_page_and_name_comes_once(server: Listening) -> None:
    everything = [NAMES[0], "alias", *NAMES[1:]]
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        first = client.models.list()
        assert (len(first.data), first.has_more, first.first_id, first.last_id) == (20, True, "m00", "m18")
        for limit in (1, 7, 46, 1000):
            assert [model.id for model in client.models.list(limit=limit)] == everything
        back = client.models.list(before_id="m19", limit=6)
        assert [model.id for model in back.data] == [f"m{i}" for i in range(13, 19)]
        assert [model.id for model in back] == [f"m{i}" for i in range(13, 19)] + [
            name for start in (7, 1) for name in NAMES[start : start + 6]
        ] + ["m00", "alias"]
        assert client.models.list(after_id=NAMES[-1]).data == []


def test_a_model_tells_what_is_known(server: Listening) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        model = client.models.retrieve("small")
        assert (model.id, model.type, model.display_name) == ("small", "model", "small")
        assert model.created_at == datetime.fromtimestamp(0, UTC)
        assert model.max_input_tokens == server.pool.card("small").max_model_len
        with pytest.raises(anthropic.NotFoundError, match="no model 'none'"):
            client.models.retrieve("none")


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("limit=%C2%B2", "limit"),
     ("limit=-1", "limit"), ("after_id=none", "after_id"), ("before_id=", "before_id")],
)  # fmt: skip
async def test_what_is_no_page_is_refused_by_name(query: str, param: str) -> None:
    async with small_app() as (_, client):
        answer = await client.get(f"/v1/models?{query}", headers=VERSION)
    told = answer.json()
    assert (answer.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert told["error"]["message"].startswith(param)


async def test_errors_have_the_form_of_the_client_that_asks() -> None:
    keys = {"x-api-key": "user-key-1"}
    async with small_app(api_keys=read_api_keys(["user-key-1 infer"])) as (_, client):
        missing = await client.get("/v1/models/none", headers=VERSION | keys)
        wrong = await client.delete("/models", headers=VERSION | keys)
        stranger = await client.get("/v1/models", headers=VERSION)
        other = await client.get("/v1/models/none", headers=keys)
    told = [(answer.status_code, answer.json()["error"]["type"]) for answer in (missing, wrong, stranger)]
    assert told == [(404, "not_found_error"), (405, "invalid_request_error"), (401, "authentication_error")]
    assert missing.headers["request-id"] == missing.json()["request_id"] == missing.headers["x-request-id"]
    assert other.json()["error"]["code"] == "model_not_found"


def test_openai_s_clients_get_all_of_them_in_their_form(server: Listening) -> None:
    listed = httpx.get(f"{server.url}/v1/models?limit=3").json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == [NAMES[0], "alias", *NAMES[1:]]
    assert listed["data"][1]["root"] == NAMES[0]
