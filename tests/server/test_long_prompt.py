"""A long prompt keeps nobody waiting: streams go on at every step, health is told, who waits for it hears of it."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import httpx
import numpy as np
import pytest

from support.gated_backend import GatedBackend
from support.served import SmallPool, listening, small_app
from support.small_model import small_model

NUM_STREAMS, NUM_TOKENS = 3, 300
CHUNK = 64  # of small_model's engine
LONG = "a" * 1000


async def test_streams_go_on_with_every_chunk_of_a_long_prompt() -> None:
    """Each step of the prompt's computing computes a token of every stream, too."""
    backend = GatedBackend(keep_batches=True)
    async with (
        small_app(pool=SmallPool(small_model(backend, max_model_len=2048))) as (_, client),
        asyncio.TaskGroup() as group,
    ):

        def ask(prompt: str, max_tokens: int) -> asyncio.Task[httpx.Response]:
            body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
            return group.create_task(client.post("/v1/completions", json=body))

        async def until_a_step_has(num_sequences: int) -> None:
            while not backend.batches or len(backend.batches[-1].seq_lens) < num_sequences:
                wanted = backend.num_steps + 1
                backend.let(1)
                while backend.num_steps < wanted:
                    await asyncio.sleep(0)

        answers = [ask("bcd"[i] * 5, NUM_TOKENS) for i in range(NUM_STREAMS)]
        await until_a_step_has(NUM_STREAMS)
        long = ask(LONG, 1)
        await until_a_step_has(NUM_STREAMS + 1)
        for path in ("/health", "/ready", "/metrics", "/api/ps"):  # while the engine is at a step
            assert (await client.get(path)).status_code == 200
        backend.let()
    assert [task.result().json()["usage"]["completion_tokens"] for task in answers] == [NUM_TOKENS] * NUM_STREAMS
    assert long.result().json()["usage"]["prompt_tokens"] == len(LONG)
    chunks = [batch for batch in backend.batches if len(batch.input_ids) > CHUNK // 2]
    assert len(chunks) >= len(LONG) // CHUNK
    assert {len(batch.seq_lens) for batch in chunks} == {NUM_STREAMS + 1}
    assert max(len(batch.input_ids) for batch in chunks) <= CHUNK
    for before, after in pairwise(chunks):
        assert sorted(np.diff(after.query_start))[:NUM_STREAMS] == [1] * NUM_STREAMS
        assert after.seq_lens.sum() - before.seq_lens.sum() == len(after.input_ids)


def test_who_waits_for_a_long_prompt_hears_of_it() -> None:
    """In every dialect, by the clock, whatever the engine is at; what clients read of it is nothing."""
    backend = GatedBackend()
    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}]},
        "/v1/completions": {"prompt": LONG},
        "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 8},
        "/api/chat": {"messages": [{"role": "user", "content": LONG}]},
        "/api/generate": {"prompt": LONG},
    }
    pool = SmallPool(small_model(backend, max_model_len=2048))
    with listening(pool=pool, keep_alive_interval_s=0.02) as server:
        for path, body in bodies.items():
            asked = {"model": "small", "stream": True, **body}
            with httpx.stream("POST", f"{server.url}{path}", json=asked, timeout=240) as answer:
                assert answer.status_code == 200
                lines = (line for line in answer.iter_lines() if line)
                heard = [next(line for line in lines if _is_keep_alive(line)) for _ in range(3)]
                backend.let(40)
                rest = list(lines)
            assert len(heard) == 3, path
            assert rest, path
            assert "error" not in rest[-1], path
            while backend.gate.acquire(blocking=False):  # what was let through and not needed
                pass


def test_how_far_a_prompt_has_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table of requests, in what keeps streams alive, and in the chunks that return_progress asks for."""
    monkeypatch.setattr("tuili.engine.scheduler.LONG_PREFILL_S", -1.0)  # every prefill is a long one
    backend = GatedBackend()
    first = {"model": "small", "prompt": LONG[:CHUNK], "max_tokens": 1}
    body = {"model": "small", "prompt": LONG, "stream": True, "max_tokens": 8, "return_progress": True}
    pool = SmallPool(small_model(backend, max_model_len=2048))
    with listening(pool=pool, keep_alive_interval_s=0.02) as server, httpx.Client(timeout=240) as client:
        backend.let(1)
        assert client.post(f"{server.url}/v1/completions", json=first).status_code == 200
        with client.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
            progress = (json.loads(line).get("prompt_progress") or {} for line in lines)
            backend.let(3)
            told = next(known for known in progress if known.get("processed") == 4 * CHUNK)
            assert (told["total"], told["cache"]) == (len(LONG), CHUNK)
            assert 0 < next(progress)["time_ms"] - told["time_ms"] < 240_000  # goes on though no step does
            (row,) = client.get(f"{server.url}/v1/requests").json()["data"]
            assert (row["phase"], row["computed_tokens"], row["prompt_tokens"]) == ("prefill", 4 * CHUNK, len(LONG))
            backend.let()


def _is_keep_alive(line: str) -> bool:
    if line.startswith(": "):
        return True
    if line.startswith("data: "):
        return json.loads(line.removeprefix("data: ")).get("type") == "ping"
    return line.startswith("{") and "prompt_tokens_computed" in json.loads(line)
