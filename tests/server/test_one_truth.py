"""One server, one truth: every dialect and the Python API say the same text, count the same tokens, refuse the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.asking import ANTHROPIC, FORMATS, events_of, said
from support.served import Listening
from tuili import LLM, SamplingParams

ASKED = [{"role": "user", "content": "Tell me about the sea."}]
GREEDY = {"temperature": 0, "max_tokens": 24}
SEEDED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7, "max_tokens": 24}
OVERLONG = "one two three four " * 200
CONTEXT = 512


@pytest.fixture(scope="module")
def offline(smollm2_gguf: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_gguf), max_model_len=CONTEXT, kv_cache_memory_bytes=64 << 20) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(smollm2_server: Listening) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=smollm2_server.url, timeout=240) as client:
        yield client


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_conversation_has_one_answer(
    smollm2_server: Listening, name: str, offline: LLM, sampling: dict[str, Any]
) -> None:
    wanted = offline.chat(ASKED, SamplingParams(**sampling), use_tqdm=False)[0].outputs[0].text
    assert len(wanted) > 40
    for form in FORMATS.values():
        if form is ANTHROPIC and "seed" in sampling:  # its API has none
            continue
        body = {"model": name, **form.body(ASKED, sampling)}
        for streams in (False, True):
            assert said(smollm2_server.url, form, body, streams=streams) == wanted, (form.path, streams)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_prompt_has_one_continuation(client: httpx.Client, name: str, offline: LLM, sampling: dict[str, Any]) -> None:
    prompt = "The sea is"
    wanted = offline.generate(prompt, SamplingParams(**sampling), use_tqdm=False)[0].outputs[0].text
    options = {**sampling, "num_predict": sampling["max_tokens"]}
    for streams in (False, True):
        body: dict[str, Any] = {"model": name, "prompt": prompt, "stream": streams}
        ours = client.post("/v1/completions", json={**body, **sampling}).text
        theirs = client.post("/api/generate", json={**body, "raw": True, "options": options}).text
        assert "".join(e["choices"][0]["text"] for e in events_of(ours)) == wanted
        assert "".join(e["response"] for e in events_of(theirs)) == wanted


def _asking(text: str) -> dict[str, dict[str, Any]]:
    """Every route that answers, with a body in which a person asks that."""
    messages = [{"role": "user", "content": text}]
    return {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": text},
        "/api/chat": {"messages": messages},
        "/api/generate": {"prompt": text},
        "/v1/messages": {"messages": messages, "max_tokens": 8},
    }


def _counting(text: str) -> dict[str, dict[str, Any]]:
    """Every route that counts, likewise."""
    messages = [{"role": "user", "content": text}]
    return {"/tokenize": {"messages": messages}, "/v1/messages/count_tokens": {"messages": messages}}


def _message(body: dict[str, Any]) -> str:
    error = body["error"]
    return str(error) if isinstance(error, str) else str(error["message"])


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_is_too_long_is_refused_with_its_numbers_everywhere(
    client: httpx.Client, name: str, streams: bool
) -> None:
    counts = [client.post(p, json={"model": name, **body}).json() for p, body in _counting(OVERLONG).items()]
    count = counts[0]["count"]
    assert counts[1] == {"input_tokens": count}  # a count is the truth, whatever fits
    plain = client.post("/tokenize", json={"model": name, "prompt": OVERLONG}).json()["count"]
    for path, body in _asking(OVERLONG).items():
        answer = client.post(path, json={"model": name, **body, "stream": streams})
        length = plain if path == "/v1/completions" else count
        wanted = f"prompt has {length} tokens; the context holds {CONTEXT} and at least 1 must be left to answer"
        assert answer.status_code == 400, path
        assert answer.headers["content-type"] == "application/json"
        assert _message(answer.json()).endswith(wanted), path
    asked = {"model": name, **_asking(OVERLONG)["/v1/chat/completions"], "max_tokens": 4}
    openai = client.post("/v1/chat/completions", json=asked)
    assert openai.json()["error"] | {"message": "", "request_id": ""} == {
        "message": "",
        "request_id": "",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "context_length_exceeded",
        "prompt_tokens": count,
        "max_tokens": 4,
        "n_ctx": CONTEXT,
    }


@pytest.mark.parametrize("streams", [False, True])
def test_a_model_that_is_not_there_is_told_everywhere(client: httpx.Client, streams: bool) -> None:
    for path, body in (_asking("hello") | _counting("hello")).items():
        answer = client.post(path, json={"model": "absent", **body, "stream": streams})
        assert (answer.status_code, "absent" in _message(answer.json())) == (404, True), path
    for path in ("/api/show", "/v1/models/load", "/v1/models/unload"):
        assert client.post(path, json={"model": "absent"}).status_code == 404, path
    assert client.get("/v1/models/absent").status_code == 404


def test_the_context_is_told_where_clients_look(client: httpx.Client, name: str) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["max_model_len"]) == (name, CONTEXT)
    assert client.get(f"/v1/models/{name}").json() == listed
    assert client.post("/api/show", json={"model": name}).json()["context_length"] == CONTEXT
    (loaded,) = client.get("/api/ps").json()["models"]
    assert loaded["context_length"] == CONTEXT
    assert client.post("/tokenize", json={"model": name, "prompt": "a"}).json()["max_model_len"] == CONTEXT


def test_a_context_asked_for_is_kept_by_every_dialect_that_has_one(client: httpx.Client, name: str) -> None:
    """And the answer ends where it does."""
    for path in ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate"):
        body = {"model": name, **_asking("Count to a thousand, please.")[path], "options": {"num_ctx": 4}}
        answer = client.post(path, json=body)
        assert answer.status_code == 400, path
        assert "limited to 4 by the request" in _message(answer.json()), path
    body = {"model": name, "prompt": "1 2 3", "options": {"num_ctx": 20}, "ignore_eos": True}
    usage = client.post("/v1/completions", json=body).json()["usage"]
    assert usage["total_tokens"] == 20
