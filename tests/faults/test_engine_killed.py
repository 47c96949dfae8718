"""F1: kill -9 of an engine process while it answers. Every stream goes on where it was: no token lost, none twice."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support import fake_engine
from support.answers import Answers, ask
from support.fake_backend import solo
from support.faults import KillAt, start_fake, take_all
from tuili.runtime.supervised_engine import SupervisedEngine
from tuili.types import TokenRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")
NUM_KILLS, NUM_STREAMS = 20, 16
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
    engine = await start_fake(tmp_path_factory.mktemp("model"))
    yield engine
    await engine.aclose()


async def test_sixteen_streams_survive_twenty_kills(engine: SupervisedEngine) -> None:
    random_ = random.Random(1)
    for round_ in range(NUM_KILLS):
        kill = KillAt(engine, random_.randrange(1, 250))
        requests = streams(round_)
        answers = await take_all(engine, requests, kill)
        for request, found in zip(requests, answers, strict=True):
            assert_whole(request, found)
        assert kill.is_done
    assert engine.health.num_restarts == NUM_KILLS
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
