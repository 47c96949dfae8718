"""What preempted sequences had computed, in host memory and back: the same tokens, with less to compute."""

from __future__ import annotations

import logging

import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend
from tuili.types import TokenRequest

LONG = [(7 * i + 3) % VOCAB for i in range(75)]
REQUESTS = [ask(f"r{i}", LONG[i : i + 12], max_tokens=66, temperature=0.5, seed=i, logprobs=1) for i in range(16)]
NARROW = {"blocks": 12, "max_num_seqs": 16, "max_num_batched_tokens": 64, "max_model_len": 80}


def crowded(backend: FakeBackend, requests: list[TokenRequest] = REQUESTS, **changes: object) -> tuple[int, int, int]:
    """Preemptions, swaps and computed tokens of a crowd in a cache for two and a half."""
    engine = make_engine(backend, **{**NARROW, "enable_prefix_caching": False, **changes})  # type: ignore[arg-type]
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request, 80)
    stats = engine.stats()
    return stats.num_preemptions, stats.num_swaps, stats.num_computed_tokens


@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize("windows", [(None,), (None, 20), (33, None)])
def test_what_was_saved_is_not_computed_again(windows: tuple[int | None, ...], is_asynchronous: bool) -> None:
    preemptions, swaps, computed = crowded(FakeBackend(windows=windows, is_asynchronous=is_asynchronous))
    assert preemptions >= 20
    assert swaps == 0
    backend = FakeBackend(windows=windows, is_asynchronous=is_asynchronous)
    saving, saved, computed_beside = crowded(backend, swap_bytes=1000)
    assert saved == saving >= 20
    assert computed_beside == sum(12 + 65 for _ in REQUESTS) < computed


def test_without_room_in_host_memory_the_rest_is_computed_anew() -> None:
    preemptions, swaps, _ = crowded(FakeBackend(), swap_bytes=5)
    assert 0 < swaps < preemptions


def test_what_is_dearer_than_computing_is_not_saved() -> None:
    preemptions, swaps, _ = crowded(FakeBackend(swap_s=1e9), swap_bytes=1000)
    assert preemptions >= 20
    assert swaps <= 1  # before the first step with prompts has been timed


def test_the_prefix_cache_serves_what_it_still_has_of_a_saved_sequence() -> None:
    engine, answers = make_engine(blocks=6, max_num_seqs=4, max_model_len=96, swap_bytes=1000), Answers()
    requests = [ask(name, LONG[:20], max_tokens=50) for name in ("a", "b", "c")]
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        engine.check()
    assert engine.stats().num_swaps
    for request in requests:
        assert_solo(answers, request, 96)
    assert_idle(engine)


def test_an_answer_that_is_aborted_while_it_waits_leaves_its_host_blocks() -> None:
    engine, answers = make_engine(FakeBackend(), **NARROW, swap_bytes=1000), Answers()  # type: ignore[arg-type]
    for request in REQUESTS[:4]:
        engine.add(request, answers)
    while not engine.stats().num_swaps:
        engine.step()
    (waiting,) = engine._scheduler.waiting
    engine.abort(waiting.request.request_id)
    engine.check()
    while engine.step():
        engine.check()
    assert_idle(engine)


def test_a_failed_step_makes_what_was_saved_worthless() -> None:
    backend = FakeBackend()
    engine, answers = make_engine(backend, **NARROW, swap_bytes=1000), Answers()  # type: ignore[arg-type]
    for request in REQUESTS[:4]:
        engine.add(request, answers)
    while not engine.stats().num_swaps:
        engine.step()
    backend.fail_on = {backend.num_steps + 1}
    engine.step()
    engine.check()
    (left,) = engine._scheduler.waiting
    computed = engine.stats().num_computed_tokens
    num_tokens = left.num_tokens
    while engine.step():
        engine.check()
    more = len(REQUESTS[0].prompt_token_ids) + 66 - num_tokens
    assert engine.stats().num_computed_tokens - computed == num_tokens + more - 1
    assert_solo(answers, left.request, 80)


def test_a_backend_in_host_memory_has_no_use_for_it(caplog: pytest.LogCaptureFixture) -> None:
    class Plain:
        """Without the methods that swap."""

        def __init__(self) -> None:
            self._backend = FakeBackend()
            for name in (
                "vocab_size",
                "cache_groups",
                "allocate_cache",
                "execute",
                "sample",
                "close",
                "is_asynchronous",
                "num_stages",
            ):
                setattr(self, name, getattr(self._backend, name))
            self.windows, self.block_bytes = self._backend.windows, self._backend.block_bytes

    with caplog.at_level(logging.INFO, logger="tuili.engine"):
        assert crowded(Plain(), REQUESTS[:4], swap_bytes=1000)[1] == 0  # type: ignore[arg-type]
    assert "swap_space has no effect" in caplog.text
