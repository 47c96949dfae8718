"""Conversations that grow by a turn are computed by a turn, whatever the attention; what others asked stays theirs."""

from __future__ import annotations

import asyncio
import random
import string
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.asking import events_of
from support.fake_backend import FakeBackend
from support.served import SmallPool, small_app
from support.small_model import small_model
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.server.api_keys import read_api_keys

NUM_TURNS, BLOCK = 20, 16
CONTEXT = 2048
SYSTEM = "be brief and name all your sources " * 2
WINDOWS = pytest.mark.parametrize("windows", [(None,), (None, 40)], ids=["full", "windowed"])


def _pool(windows: tuple[int | None, ...] = (None,)) -> SmallPool:
    return SmallPool(small_model(FakeBackend(windows), max_model_len=CONTEXT))


async def _openai(client: httpx.AsyncClient, messages: list[dict[str, str]]) -> tuple[str, int, int]:
    body = {"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], cached


async def _anthropic(client: httpx.AsyncClient, messages: list[dict[str, str]]) -> tuple[str, int, int]:
    body = {"model": "small", "messages": messages, "max_tokens": 12, "temperature": 0}
    answer = (await client.post("/v1/messages", json=body)).json()
    usage = answer["usage"]
    cached = usage["cache_read_input_tokens"]
    return answer["content"][0]["text"], usage["input_tokens"] + cached, cached


@WINDOWS
@pytest.mark.parametrize("ask", [_openai, _anthropic])
async def test_of_twenty_turns_each_computes_what_is_new(ask: Any, windows: tuple[int | None, ...]) -> None:
    """Beside the last, incomplete block: what the turn before computed is found again."""
    messages = [{"role": "system", "content": SYSTEM}] if ask is _openai else []
    num_before, possible, found = 0, 0, 0
    async with small_app(pool=_pool(windows)) as (_, client):
        for turn in range(NUM_TURNS):
            messages.append({"role": "user", "content": f"what about number {turn % 8} then and why so"})
            text, num_prompt, num_cached = await ask(client, messages)
            messages.append({"role": "assistant", "content": text})
            possible += num_before // BLOCK * BLOCK
            found += num_cached
            num_before = num_prompt
    assert possible > 5000
    assert found >= 0.95 * possible


async def test_many_agents_at_once_lose_nothing_of_it() -> None:
    async with small_app(pool=_pool()) as (_, client):

        async def converse(name: str) -> float:
            messages = [{"role": "system", "content": f"{name} {SYSTEM}"}]
            num_before, possible, found = 0, 0, 0
            for _ in range(8):
                messages.append({"role": "user", "content": "and what comes next of all these things"})
                text, num_prompt, num_cached = await _openai(client, messages)
                messages.append({"role": "assistant", "content": text})
                possible += num_before // BLOCK * BLOCK
                found += num_cached
                num_before = num_prompt
            return found / possible

        assert min(await asyncio.gather(*map(converse, ("anna", "bert", "carl", "dora")))) >= 0.95


async def _details(client: httpx.AsyncClient, system: str, key: str | None = None) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "go on with it all"}]
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    body = {"messages": messages, "max_tokens": 1}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    details: dict[str, Any] = answer.json()["usage"]["prompt_tokens_details"]
    return details


async def test_a_system_text_that_changed_is_told_by_its_first_token() -> None:
    async with small_app(pool=_pool()) as (_, client):
        assert (await _details(client, SYSTEM))["cache_miss_reason"] == "new"
        again = await _details(client, SYSTEM)
        assert (again["cache_miss_reason"], again["cached_tokens"] > 64) == ("block_end", True)
        position = 45
        changed = await _details(client, SYSTEM[:position] + "Q" + SYSTEM[position + 1 :])
        assert changed["cache_miss_reason"] == "differs"
        assert changed["first_different_token"] == len("system ") + position
        assert changed["cached_tokens"] == (len("system ") + position) // BLOCK * BLOCK


async def test_what_others_asked_is_never_told() -> None:
    keys = read_api_keys(["first-key-1 infer", "second-key-2 infer"])
    async with small_app(pool=_pool(), api_keys=keys) as (_, client):
        first = [await _details(client, SYSTEM, "first-key-1") for _ in range(2)]
        other = await _details(client, SYSTEM, "second-key-2")
        assert [details["cached_tokens"] > 0 for details in first] == [False, True]
        assert (other["cached_tokens"], other["cache_miss_reason"], other["first_different_token"]) == (
            0,
            "new_salt",
            0,
        )
        differing = await _details(client, "Q" + SYSTEM, "second-key-2")  # compared with one's own only
        assert differing["first_different_token"] == len("system ")


async def _continued(
    client: httpx.AsyncClient, ids: list[int], *, streams: bool, salt: str = "ours"
) -> tuple[list[int], int]:
    """The tokens that follow, and how many of the prompt's were found in the cache."""
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "cache_salt": salt}
    extra = {"stream_options": {"include_usage": True}} if streams else {}
    answer = await client.post("/v1/completions", json={**body, "return_token_ids": True, "stream": streams, **extra})
    assert answer.status_code == 200, answer.text
    events = events_of(answer.text)
    tokens = [i for event in events for choice in event["choices"] for i in choice.get("token_ids") or ()]
    usage = next(event["usage"] for event in events if event.get("usage"))
    return tokens, usage["prompt_tokens_details"]["cached_tokens"]


async def test_gemma_computes_of_each_turn_what_is_new(gemma3_gguf: Path) -> None:
    """Beyond the window that most of its layers have; what was cached says what is computed anew."""
    sizes = LoadOptions(max_model_len=1024, max_num_seqs=2, kv_cache_memory_bytes=96 << 20)
    model = open_model(str(gemma3_gguf), sizes)
    chance = random.Random(1)
    ids = [2, *(chance.randrange(1000, 200_000) for _ in range(480))]
    found: list[int] = []
    async with small_app(pool=SmallPool(model)) as (_, client):
        for turn in range(4):
            tokens, num_cached = await _continued(client, ids, streams=turn % 2 == 0)
            again, num_cached_again = await _continued(client, ids, streams=turn % 2 == 1)
            assert (again, len(tokens)) == (tokens, 8)
            assert num_cached_again >= num_cached
            found.append(num_cached)
            ids += [*tokens, *(chance.randrange(1000, 200_000) for _ in range(24))]
        asked = len(ids) - 32
        tokens, num_cached = await _continued(client, ids[:asked], streams=False, salt="nobody has asked this")
        assert (tokens, num_cached) == (ids[asked : asked + 8], 0)
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] >= 512
    assert all(now >= len_before for now, len_before in zip(found[1:], range(448, 640, 32), strict=False))


def _area(hits: list[tuple[int, int]], misses: list[tuple[int, int]]) -> float:
    """How often a hit is told from a miss by being quicker: 0.5 is never, 1 is always."""
    pairs = [(hit, miss) for hit in hits for miss in misses]
    return sum(1.0 if hit < miss else 0.5 if hit == miss else 0.0 for hit, miss in pairs) / len(pairs)


async def test_what_others_asked_is_never_felt() -> None:
    """By the steps and tokens computed until the first token, which is what a clock would measure."""
    keys = read_api_keys(["first-key-1 infer", "second-key-2 infer"])
    chance = random.Random(20261121)
    backend = FakeBackend(keep_batches=True)
    num_probes = 25

    async def felt(client: httpx.AsyncClient, key: str, prompt: str) -> tuple[int, int]:
        backend.batches.clear()
        headers = {"authorization": f"Bearer {key}"}
        body = {"prompt": prompt, "max_tokens": 1}
        assert (await client.post("/v1/completions", json=body, headers=headers)).status_code == 200
        return len(backend.batches), sum(len(batch.input_ids) for batch in backend.batches)

    texts = ["".join(chance.choices(string.ascii_lowercase[:20], k=120)) for _ in range(2 * num_probes)]
    pool = SmallPool(small_model(backend, max_model_len=CONTEXT))
    async with small_app(pool=pool, api_keys=keys) as (_, client):
        asked, unasked = texts[:num_probes], texts[num_probes:]
        for text in asked:
            await felt(client, "first-key-1", text)
        own = [await felt(client, "first-key-1", text) for text in asked]
        probes = {text: await felt(client, "second-key-2", text) for text in chance.sample(texts, len(texts))}
    others, nobodys = [probes[text] for text in asked], [probes[text] for text in unasked]
    assert _area(own, nobodys) == 1.0  # one's own is felt
    assert 0.45 <= _area(others, nobodys) <= 0.55
