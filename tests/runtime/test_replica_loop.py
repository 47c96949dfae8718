"""Engines in processes of their own behind the doors of a loop in this one, and LLM over two of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import fake_engine
from support.answers import Answers, ask
from support.fake_backend import solo
from support.faults import start_fake
from tuili import LLM, SamplingParams
from tuili.errors import ContextLengthError, EngineUnavailableError, InsufficientMemoryError, InvalidRequestError
from tuili.runtime.api.replica_loop import ReplicaLoop
from tuili.runtime.pool.served_model import StartedModel
from tuili.runtime.replicas.replicated_engine import ReplicatedEngine
from tuili.runtime.supervision.supervised_engine import RestartPolicy
from tuili.types import TokenDelta

PATIENT = RestartPolicy(silence_s=120, hang_timeout_s=240)
WAIT_S = 60.0


async def start_two(folder: Path) -> StartedModel:
    for i in range(2):
        (folder / str(i)).mkdir()
    starting = (start_fake(folder / str(i), PATIENT, step_s=0.005) for i in range(2))
    front: Any = None
    return StartedModel(front=front, client=ReplicatedEngine(await asyncio.gather(*starting)))


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[ReplicaLoop]:
    made = ReplicaLoop(partial(start_two, tmp_path))
    yield made
    made.close()


class Reader:
    """A sink that is waited for."""

    def __init__(self) -> None:
        self.answers, self.first, self.done = Answers(), threading.Event(), threading.Event()

    def __call__(self, delta: TokenDelta) -> None:
        self.answers(delta)
        self.first.set()
        if delta.finish_reason is not None:
            self.done.set()


def test_requests_come_and_go_through_any_thread(loop: ReplicaLoop) -> None:
    told = threading.Event()
    loop.add_listener(told.set)
    requests = [ask(f"r{i}", range(5 + i), max_tokens=12, temperature=0.5 * (i % 2), seed=i) for i in range(6)]
    readers = [Reader() for _ in requests]
    for request, reader in zip(requests, readers, strict=True):
        loop.submit(request, reader)
    for request, reader in zip(requests, readers, strict=True):
        assert reader.done.wait(WAIT_S)
        name = request.request_id
        found = reader.answers.tokens(name), reader.answers.reason(name)
        assert found == solo(request, 0, fake_engine.CONFIG.max_model_len)
    assert told.is_set()
    loop.remove_listener(told.set)
    assert loop.is_open
    assert loop.stats().num_blocks[0] > 0
    with pytest.raises(ContextLengthError):
        loop.submit(ask("long", [1] * 300, max_tokens=1), Reader())


def test_answers_are_aborted_and_closing_ends_the_rest(loop: ReplicaLoop) -> None:
    left, aborted, last = Reader(), Reader(), Reader()
    for name, reader in (("left", left), ("aborted", aborted), ("last", last)):
        loop.submit(ask(name, [1, 2], max_tokens=240, ignore_eos=True), reader)
        assert reader.first.wait(WAIT_S)
    loop.abort("left", sink=left)
    loop.abort("aborted")
    assert aborted.done.wait(WAIT_S)
    assert aborted.answers.reason("aborted") == "abort"
    loop.close()
    assert last.done.is_set()
    assert isinstance(last.answers.last("last").error, EngineUnavailableError)
    assert left.answers.reason("left") is None  # nobody reads it any more
    assert not loop.is_open
    assert not loop.reset_prefix_cache()
    loop.abort("last")
    with pytest.raises(EngineUnavailableError, match="the engine is closed"):
        loop.submit(ask("late", [1], max_tokens=1), Reader())


def test_what_cannot_start_is_raised_where_it_was_asked_for() -> None:
    async def start() -> StartedModel:
        raise InsufficientMemoryError("12 GiB are needed")

    with pytest.raises(InsufficientMemoryError, match="12 GiB are needed"):
        ReplicaLoop(start)


def test_llm_over_two_engines_says_what_one_says(llm: LLM, smollm2_gguf: Path) -> None:
    prompts = ["The capital of France is", "Water boils at", "One, two, three,", "A B C"]
    params = SamplingParams(temperature=0.0, max_tokens=6)
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    limits = {"max_model_len": 256, "kv_cache_memory_bytes": 32 << 20}
    with LLM(str(smollm2_gguf), backend="cpu", data_parallel_size=2, **limits) as two:
        found = [output.outputs[0].token_ids for output in two.generate(prompts, params, use_tqdm=False)]
        assert found == expected
        with pytest.raises(InvalidRequestError, match="logits_processors are called where the engine runs"):
            two.generate("x", SamplingParams(max_tokens=1, logits_processors=[lambda ids, row: row]), use_tqdm=False)
    with pytest.raises(EngineUnavailableError):
        two.generate("x", params, use_tqdm=False)


def test_a_number_of_engines_is_checked() -> None:
    with pytest.raises(InvalidRequestError, match=r"data_parallel_size must be an integer in \[1, 64\]"):
        LLM("never-looked-for", data_parallel_size=0)
