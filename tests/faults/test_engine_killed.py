"""F1: kill -9 of an engine process while it answers. Every stream goes on where it was: no token lost, none twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from support import fake_engine
from support.answers import Answers, ask
from support.fake_backend import solo
from support.faults import KillAt, collect, start_fake, take_all
from tuili.errors import EngineUnavailableError
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.supervision.engine_start import start_engine
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine
from tuili.types import SamplingParams, TokenRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")
NUM_KILLS, NUM_STREAMS = int(os.environ.get("TUILI_KILLS", "5")), 16
PATIENT = RestartPolicy(silence_s=120, hang_timeout_s=240)  # only kills of this test end an engine, however busy
CONTEXT = fake_engine.CONFIG.max_model_len


def streams(round_: int) -> list[TokenRequest]:
    """Greedy and sampled, one answer and several, with logprobs, penalties, mirostat, ends of their own and without."""
    kinds: list[dict[str, object]] = [
        {},
        {"temperature": 0.8, "logprobs": 2},
        {"temperature": 1.0, "n": 3, "logprobs": 0},
        {"temperature": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 1.0, "mirostat": 2, "n": 2},
        {"prompt_logprobs": 1, "min_tokens": 16},
        {"temperature": 0.7, "eos": (3, 4)},
        {"dry_multiplier": 0.75, "dry_penalty_last_n": -1},
    ]
    return [
        ask(f"{round_}-{i}", [(i * k + round_) % 61 for k in range(5 + 3 * i)], seed=i, max_tokens=24, **kinds[i % 8])  # type: ignore[arg-type]
        for i in range(NUM_STREAMS)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SupervisedEngine]:
    engine = await start_fake(tmp_path_factory.mktemp("model"), PATIENT)
    yield engine
    await engine.aclose()


async def test_real_streams_survive_kills(smollm2_gguf: Path) -> None:
    engine = await start_engine(
        smollm2_gguf, LoadOptions(max_model_len=256, kv_cache_memory_bytes=64 << 20), policy=PATIENT
    )
    requests = [
        TokenRequest(
            request_id=f"r{i}",
            prompt_token_ids=tuple(range(40 * i + 1, 40 * i + 9 + i)),
            sampling=SamplingParams(max_tokens=24, logprobs=1, **kind),  # type: ignore[arg-type]
            seed=i,
        )
        for i, kind in enumerate([{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 1.0, "n": 2}] * 3)
    ]
    uncut = await take_all(engine, requests)
    cut = await take_all(engine, requests, KillAt(engine, 100))
    for request, before, after in zip(requests, uncut, cut, strict=True):
        for index in request.indexes:
            assert _told(after, request.request_id, index) == _told(before, request.request_id, index)
    await restarted(engine, 1)
    assert engine.facts.cache_bytes <= 64 << 20
    await engine.aclose()


async def restarted(engine: SupervisedEngine, num_restarts: int) -> None:
    """Waits for it: who is slow to read may have had every token before the kill, and be done before the restart."""
    async with asyncio.timeout(120):
        while (engine.health.num_restarts, engine.health.is_ready) != (num_restarts, True):
            await asyncio.sleep(0.005)


def _told(answers: Answers, request_id: str, index: int) -> list[tuple[int, object]]:
    deltas = answers.deltas[request_id, index]
    return [pair for delta in deltas for pair in zip(delta.token_ids, delta.logprobs or (), strict=True)]


async def test_a_model_whose_file_has_become_another_is_not_gone_on_with(tmp_path: Path) -> None:
    engine = await start_fake(tmp_path, RestartPolicy(max_restarts=1))
    (tmp_path / "model").write_bytes(b"others")
    request = ask("r", [1, 2], max_tokens=200)
    answers = await collect(engine, request, KillAt(engine, 3))
    error = answers.last("r").error
    assert isinstance(error, EngineUnavailableError)
    assert "model: changed on disk since it was loaded" in str(error)
    await engine.aclose()


async def test_sixteen_streams_survive_every_kill(engine: SupervisedEngine) -> None:
    random_ = random.Random(1)
    for round_ in range(NUM_KILLS):
        kill = KillAt(engine, random_.randrange(1, 250))
        requests = streams(round_)
        answers = await take_all(engine, requests, kill)
        for request, found in zip(requests, answers, strict=True):
            assert_whole(request, found)
        assert kill.is_done
        await restarted(engine, round_ + 1)
    assert engine.stats().num_output_tokens > 0


def assert_whole(request: TokenRequest, found: Answers) -> None:
    for index in request.indexes:
        tokens, reason = solo(request, index, CONTEXT)
        assert (found.tokens(request.request_id, index), found.reason(request.request_id, index)) == (tokens, reason)
        if request.sampling.logprobs is not None:
            told = [entry for delta in found.deltas[request.request_id, index] for entry in delta.logprobs or ()]
            assert [next(iter(entry)) for entry in told] == tokens
    if request.sampling.prompt_logprobs is not None:
        told_prompts = [delta for delta in found.deltas[request.request_id, 0] if delta.prompt_logprobs]
        assert [len(delta.prompt_logprobs or ()) for delta in told_prompts] == [len(request.prompt_token_ids)]
