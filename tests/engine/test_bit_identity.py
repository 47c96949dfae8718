"""The numerics contract on a real model: an answer's tokens and logprobs never depend on what happens around it.

Alone, in a batch of 32, in chunks of any size, from a cached prefix, after preemption, with one
thread or two: equal to the last bit, greedy and sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.answers import Answers, ask, run
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.types import BeamSearchParams, SamplingParams, TokenDelta, TokenRequest
from tuili.weights.checkpoint import open_checkpoint

CONTEXT = 256
MANNERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 50,
        "seed": 1234,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
    },
    "samplers": {
        "temperature": 1.1,
        "seed": 99,
        "presence_penalty": 0.4,
        "dry_multiplier": 0.8,
        "dry_penalty_last_n": -1,
        "repeat_last_n": 32,
        "mirostat": 2,
        "bad_words": ((28,), (253, 1056)),
    },
}


def words(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(20, 40000, count).tolist())


PROMPT = words(0, 150)


def _backend(path: Path, num_threads: int) -> Backend:
    checkpoint = open_checkpoint(path)
    options = BackendOptions(max_model_len=CONTEXT, num_threads=num_threads)
    return load_backend("cpu", checkpoint.spec, checkpoint.weights, options)


@pytest.fixture(scope="module")
def backend(smollm2_gguf: Path) -> Iterator[Backend]:
    backend = _backend(smollm2_gguf, 1)
    yield backend
    backend.close()


@pytest.fixture(scope="module", params=MANNERS)
def subject(request: pytest.FixtureRequest) -> TokenRequest:
    """The request whose answer is compared."""
    return ask("subject", PROMPT, max_tokens=24, logprobs=5, **MANNERS[request.param])


@pytest.fixture(scope="module")
def alone(backend: Backend, subject: TokenRequest) -> list[TokenDelta]:
    """Its answer with nothing around it."""
    return answer(run(engine(backend, max_num_seqs=1), [subject], checked=False))


def engine(backend: Backend, blocks: int | None = None, **limits: Any) -> Engine:
    config = EngineConfig(**{"max_model_len": CONTEXT, "block_size": 16, **limits})
    if blocks is not None:
        block_bytes = sum(group.block_bytes for group in backend.cache_groups(16))
        config = EngineConfig(
            **{"max_model_len": CONTEXT, "block_size": 16, "kv_cache_memory_bytes": blocks * block_bytes} | limits
        )
    return Engine(backend, config)


def answer(answers: Answers) -> list[TokenDelta]:
    deltas = answers.deltas["subject", 0]
    assert sum(len(d.token_ids) for d in deltas) == 24
    return deltas


def assert_same(found: list[TokenDelta], expected: list[TokenDelta]) -> None:
    assert [d.token_ids for d in found] == [d.token_ids for d in expected]
    assert [d.logprobs for d in found] == [d.logprobs for d in expected]
    assert [d.finish_reason for d in found] == [d.finish_reason for d in expected]


def crowd(count: int) -> list[TokenRequest]:
    """Others, of many lengths and manners."""
    return [
        ask(
            f"other {i}",
            words(i + 1, 3 + 2 * i),
            max_tokens=4 + i % 9,
            temperature=0.5 * (i % 3),
            seed=i,
            logprobs=i % 2,
        )
        for i in range(count)
    ]


def test_in_a_batch_of_32(backend: Backend, subject: TokenRequest, alone: list[TokenDelta]) -> None:
    others = crowd(31)
    everyone = engine(backend, max_num_seqs=32)
    assert_same(answer(run(everyone, [*others[:9], subject, *others[9:]], checked=False)), alone)


@pytest.mark.parametrize("budget", [16, 64, 512])
def test_in_chunks(backend: Backend, subject: TokenRequest, alone: list[TokenDelta], budget: int) -> None:
    few = engine(backend, max_num_seqs=4, max_num_batched_tokens=budget)
    assert_same(answer(run(few, [*crowd(3), subject], checked=False)), alone)


def test_from_a_cached_prefix(backend: Backend, subject: TokenRequest, alone: list[TokenDelta]) -> None:
    warm = engine(backend, max_num_seqs=4)
    run(warm, [ask("before", PROMPT[:100], max_tokens=3)], checked=False)
    found = answer(run(warm, [subject], checked=False))
    assert found[0].num_cached_tokens == 96
    assert_same(found, alone)


@pytest.mark.parametrize("caching", [True, False])
def test_after_preemption(backend: Backend, subject: TokenRequest, alone: list[TokenDelta], caching: bool) -> None:
    tight = engine(backend, blocks=14, max_num_seqs=4, enable_prefix_caching=caching)
    answers = Answers()
    tight.add(subject, answers)
    for _ in range(6):
        tight.step()
    for i in range(2):
        tight.add(ask(f"urgent {i}", words(50 + i, 30), max_tokens=60, priority=-1), answers)
    while tight.step():
        pass
    assert tight.stats().num_preemptions > 0
    assert_same(answer(answers), alone)


def test_with_two_threads(smollm2_gguf: Path, subject: TokenRequest, alone: list[TokenDelta]) -> None:
    backend = _backend(smollm2_gguf, 2)
    try:
        both = engine(backend, max_num_seqs=8)
        assert_same(answer(run(both, [subject, *crowd(7)], checked=False)), alone)
    finally:
        backend.close()


def test_answers_of_n_equal_the_subject_with_its_index(backend: Backend) -> None:
    manner = {**MANNERS["sampled"], "max_tokens": 12, "logprobs": 2}
    several = run(engine(backend, max_num_seqs=3), [ask("subject", PROMPT, n=5, **manner)], checked=False)
    crowded = run(engine(backend, max_num_seqs=8), [ask("subject", PROMPT, n=5, **manner), *crowd(4)], checked=False)
    single = run(engine(backend), [ask("subject", PROMPT, **manner)], checked=False)
    for index in range(5):
        assert_same(several.deltas["subject", index], crowded.deltas["subject", index])
    assert_same(several.deltas["subject", 0], single.deltas["subject", 0])
    assert len({tuple(several.tokens("subject", i)) for i in range(5)}) == 5


def test_beams_in_any_company(backend: Backend) -> None:
    """Alone, among others, in small chunks and with too few blocks for all beams."""
    params = BeamSearchParams(beam_width=4, max_tokens=10)
    subject = TokenRequest(
        request_id="subject",
        prompt_token_ids=PROMPT,
        sampling=SamplingParams(n=4, max_tokens=10, seed=0),
        seed=0,
        beam_search=params,
    )
    runs = [
        run(engine(backend, max_num_seqs=4), [subject], checked=False),
        run(engine(backend, max_num_seqs=8, max_num_batched_tokens=48), [*crowd(9), subject], checked=False),
        run(engine(backend, blocks=12, max_num_seqs=3), [*crowd(2), subject], checked=False),
    ]
    alone, *others = [[answers.last("subject", i) for i in range(4)] for answers in runs]
    for found in others:
        assert [(d.token_ids, d.beam) for d in found] == [(d.token_ids, d.beam) for d in alone]
    assert len({d.token_ids for d in alone}) == 4


def test_prompt_logprobs_in_chunks(backend: Backend) -> None:
    scored = [
        run(
            engine(backend, max_num_seqs=2, max_num_batched_tokens=budget),
            [ask("subject", PROMPT, max_tokens=2, prompt_logprobs=3), ask("other", PROMPT[:40])],
            checked=False,
        )
        .deltas["subject", 0][0]
        .prompt_logprobs
        for budget in (16, 64, 512)
    ]
    assert scored[0] is not None
    assert len(scored[0]) == 150
    assert scored[0] == scored[1] == scored[2]
