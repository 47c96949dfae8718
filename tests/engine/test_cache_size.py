"""A cache that is made smaller and larger while the engine runs: no answer changes, and what was promised fits."""

from __future__ import annotations

import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend

LONG = [(7 * i + 3) % VOCAB for i in range(75)]


@pytest.mark.parametrize("windows", [(None,), (None, 20)])
@pytest.mark.parametrize("draft", [None, FakeBackend])
def test_answers_are_the_same_however_the_cache_is_resized_between_steps(
    windows: tuple[int | None, ...], draft: type[FakeBackend] | None
) -> None:
    backend = FakeBackend(windows=windows)
    engine = make_engine(backend, draft=draft and draft(), max_num_seqs=6, max_num_batched_tokens=40, max_model_len=128)
    full, answers = engine.cache_size.num_bytes, Answers()
    requests = [ask(f"r{i}", LONG[i : i + 20], n=2, temperature=0.7, seed=i, max_tokens=30) for i in range(8)]
    for request in requests:
        engine.add(request, answers)
    sizes = set()
    num_steps = 0
    while engine.step():
        num_steps += 1
        sizes.add(engine.cache_size.resize((0, full // 2, 2 * full)[num_steps % 3], may_forget=num_steps % 2 == 0))
        engine.check()
    for request in requests:
        assert_solo(answers, request)
    assert len(sizes) > 2
    assert backend.num_given_back > 10
    assert engine.cache_size.resize(full) == full
    assert_idle(engine)


ONE_CONTEXT = 128 // 16  # blocks, each of one byte


@pytest.mark.parametrize("may_forget", [False, True])
def test_what_was_used_and_freed_goes_back_and_a_context_as_long_as_was_promised_fits(may_forget: bool) -> None:
    backend = FakeBackend()
    engine = make_engine(backend, max_num_seqs=8, max_model_len=128)
    full, pool = engine.cache_size.num_bytes, engine.blocks.pools[0]
    requests = [ask(f"r{i}", LONG, max_tokens=1, salt=f"{i}") for i in range(8)]
    run(engine, requests)
    engine.reset_prefix_cache()
    for request in requests[:4]:
        run(engine, [request])
    assert pool.num_cached == 4 * 4
    left = ONE_CONTEXT + (0 if may_forget else pool.num_cached)
    assert engine.cache_size.resize(0, may_forget=may_forget) == left < full / 2
    assert backend.num_given_back == pool.size - left
    assert engine.stats().num_blocks == engine.stats().num_free_blocks == (left,)
    assert (engine.cache_size.resize(full), engine.cache_size.resize(0, may_forget=may_forget)) == (full, left)
    found = [run(engine, [request]).last(request.request_id).num_cached_tokens for request in requests[:4]]
    assert found[0] == (0 if may_forget else 64)
    longest = ask("r", [*LONG, *LONG[:52]], max_tokens=1)
    assert_solo(run(engine, [longest, ask("other", LONG[5:], max_tokens=40)]), longest)


class KeepsMemory(FakeBackend):
    give_back_blocks = None  # type: ignore[assignment]


def test_a_backend_that_keeps_its_memory_gives_up_only_what_nobody_has_had() -> None:
    engine = make_engine(KeepsMemory(), max_num_seqs=8, max_model_len=128)
    run(engine, [ask("before", LONG[:75], max_tokens=4)])
    engine.reset_prefix_cache()
    assert engine.cache_size.resize(0, may_forget=True) == 5 + ONE_CONTEXT
    longest = ask("r", [*LONG, *LONG[:52]], max_tokens=1)
    assert_solo(run(engine, [longest]), longest)


def test_a_cache_that_is_made_smaller_again_does_not_grow() -> None:
    engine = make_engine(max_num_seqs=8, max_model_len=128)
    small = engine.cache_size.resize(0)
    answers = Answers()
    engine.add(ask("r", LONG[:75], max_tokens=40), answers)
    engine.step()
    assert engine.cache_size.resize(0) == small
    while engine.step():
        engine.check()


def test_a_cache_smaller_than_a_context_stays_as_it_is() -> None:
    engine = make_engine(blocks=5, max_model_len=128)
    full = engine.cache_size.num_bytes
    assert [engine.cache_size.resize(size) for size in (0, full // 2, 10 * full)] == [full] * 3
