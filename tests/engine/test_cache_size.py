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
        sizes.add(engine.cache_size.resize((0, full // 2, 2 * full)[num_steps % 3]))
        engine.check()
    for request in requests:
        assert_solo(answers, request)
    assert len(sizes) > 2
    assert engine.cache_size.resize(full) == full
    assert_idle(engine)


def test_a_context_as_long_as_was_promised_fits_what_is_left() -> None:
    engine = make_engine(max_num_seqs=8, max_model_len=128)
    full = engine.cache_size.num_bytes
    run(engine, [ask("before", LONG[:30], max_tokens=4)])
    assert engine.cache_size.resize(0) < full / 4
    assert engine.stats().num_blocks == (engine.blocks.pools[0].num_touched + 128 // engine.config.block_size,)
    longest = ask("r", [*LONG, *LONG[:52]], max_tokens=1)
    assert_solo(run(engine, [longest, ask("other", LONG[5:], max_tokens=40)]), longest)


def test_a_cache_smaller_than_a_context_stays_as_it_is() -> None:
    engine = make_engine(blocks=5, max_model_len=128)
    full = engine.cache_size.num_bytes
    assert [engine.cache_size.resize(size) for size in (0, full // 2, 10 * full)] == [full] * 3
