"""What the engine promises a request: the right tokens, the right ending, exactly once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, chain_of, log_softmax, logits_of, solo
from tuili.errors import ContextLengthError, EngineUnavailableError, InvalidRequestError, TuiliError
from tuili.types import TokenDelta

LONG = [(7 * i + 3) % VOCAB for i in range(75)]


def test_a_request_alone_and_among_others_gives_the_same_tokens() -> None:
    requests = [ask(f"r{i}", LONG[i : i + 3 + 5 * i], max_tokens=20) for i in range(12)]
    answers = run(make_engine(max_num_seqs=8, max_num_batched_tokens=24), requests)
    for request in requests:
        assert_solo(answers, request)
    assert answers.deltas["r3", 0][0].token_ids == tuple(solo(requests[3], 0, 128)[0][:1])


@pytest.mark.parametrize("budget", [1, 2, 7, 16, 64, 512])
def test_chunking_changes_nothing(budget: int) -> None:
    backend = FakeBackend(windows=(None, 20), keep_batches=True)
    engine = make_engine(backend, max_num_seqs=1, max_num_batched_tokens=budget)
    request = ask("r", LONG, max_tokens=30, temperature=0.8, seed=2**64 - 1)
    assert_solo(run(engine, [request]), request)
    assert max(len(batch.input_ids) for batch in backend.batches) == min(budget, 75)
    assert len(backend.batches) == math.ceil(75 / budget) + 29


def test_decodes_go_first_and_the_budget_holds() -> None:
    backend = FakeBackend(keep_batches=True)
    engine = make_engine(backend, max_num_seqs=4, max_num_batched_tokens=10)
    run(engine, [ask("a", LONG[:4], max_tokens=30), ask("b", LONG, max_tokens=3), ask("c", LONG[:9], max_tokens=3)])
    for batch in backend.batches:
        lengths = np.diff(batch.query_start).tolist()
        assert sum(lengths) <= 10
        assert sorted(lengths, key=lambda n: n > 1) == lengths
    both = [b for b in backend.batches if np.diff(b.query_start).tolist() == [1, 9]]
    assert len(both) >= 7  # b's prompt advances nine tokens at a time while a decodes


@pytest.mark.parametrize("n", [2, 5, 20])
def test_n_answers_equal_separate_draws_of_the_same_seed(n: int) -> None:
    engine = make_engine(max_num_seqs=8, max_num_batched_tokens=32)
    request = ask("r", LONG[:37], n=n, temperature=0.9, seed=5, max_tokens=25)
    answers = run(engine, [request, ask("other", LONG[:20], max_tokens=40)])
    assert_solo(answers, request)
    assert len({tuple(answers.tokens("r", i)) for i in range(n)}) > 1


def test_n_computes_the_prompt_once_and_copies_the_last_block_on_write() -> None:
    backend = FakeBackend(windows=(None, 18), keep_batches=True)
    engine = make_engine(backend, max_num_seqs=4)
    run(engine, [ask("r", LONG[:40], n=4, temperature=1.0, max_tokens=5)])
    first, second = backend.batches[:2]
    assert len(first.input_ids) == 40
    assert first.sample_rows.tolist() == [39] * 4
    assert first.sampling.sample_index.tolist() == [0, 1, 2, 3]
    assert second.input_ids.shape == (4,)
    assert sorted(second.block_copies[:, 0].tolist()) == [0, 0, 0, 1, 1, 1]  # three of four copy, in each group
    assert engine.stats().num_computed_tokens == 40 + 4 * 4
    assert all(len(batch.block_copies) == 0 for batch in backend.batches[2:])


def test_only_long_prefills_tell_how_far_they_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_num_seqs=4, max_num_batched_tokens=10)
    for request in (ask("a", LONG[:4], max_tokens=9), ask("b", LONG, n=2, temperature=1.0, max_tokens=3)):
        engine.add(request, Answers())
    engine.step()
    assert engine.stats().prefill == {}
    monkeypatch.setattr("tuili.engine.scheduler.LONG_PREFILL_S", -1.0)
    (known,) = engine.stats().prefill.items()
    assert (known[0], known[1][:2]) == ("b", (6, 0))
    assert 0 < known[1].elapsed_s < 600
    while engine.step():
        assert set(engine.stats().prefill) <= {"b"}
    assert engine.stats().prefill == {}


def test_endings() -> None:
    plain = solo(ask("r", LONG[:9], max_tokens=12), 0, 128)[0]
    engine = make_engine()
    k = next(i for i in range(3, 12) if plain[i] not in plain[:i])
    stop, earlier = plain[k], plain[: k + 1]
    answers = run(
        engine,
        [
            ask("eos", LONG[:9], max_tokens=12, eos=(stop,)),
            ask("ignored", LONG[:9], max_tokens=12, eos=(stop,), ignore_eos=True),
            ask("listed", LONG[:9], max_tokens=12, stop_token_ids=[stop], ignore_eos=True),
            ask("at the limit", LONG[:9], max_tokens=k + 1, eos=(stop,)),
            ask("before", LONG[:9], max_tokens=k, eos=(stop,)),
        ],
    )
    for name in ("eos", "listed", "at the limit"):
        assert answers.tokens(name) == earlier
        assert answers.last(name).finish_reason == "stop"
        assert answers.last(name).stop_token_id == stop
    assert answers.tokens("ignored") == plain
    assert answers.last("ignored").stop_token_id is None
    assert (answers.tokens("before"), answers.reason("before")) == (earlier[:-1], "length")


def test_the_end_of_the_context_ends_an_answer_with_length() -> None:
    answers = run(make_engine(max_model_len=50), [ask("r", LONG[:40], max_tokens=None), ask("one", LONG[:49])])
    assert (len(answers.tokens("r")), answers.reason("r")) == (10, "length")
    assert (len(answers.tokens("one")), answers.reason("one")) == (1, "length")


def test_min_tokens_bans_what_would_end_the_answer() -> None:
    free = solo(ask("r", LONG[:5], max_tokens=40), 0, 128)[0]
    ends = (free[0], free[2], free[5])
    request = ask("r", LONG[:5], max_tokens=40, min_tokens=20, eos=ends[:2], stop_token_ids=[ends[2]])
    answers = run(make_engine(), [request])
    assert_solo(answers, request)
    tokens = answers.tokens("r")
    assert not set(tokens[:20]) & set(ends)
    assert len(tokens) >= 20


def test_a_ban_wins_over_a_logit_bias_and_ends_with_min_tokens() -> None:
    request = ask("r", LONG[:5], max_tokens=9, min_tokens=3, eos=(11,), logit_bias={11: 100.0, 12: 50.0})
    answers = run(make_engine(), [request])
    assert answers.tokens("r") == [12, 12, 12, 11]
    assert answers.reason("r") == "stop"


def test_penalties_follow_prompt_and_output() -> None:
    settings = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    requests = [
        ask("all", LONG[:30], max_tokens=60, **settings),
        ask("n", LONG[:17], max_tokens=40, n=3, temperature=0.7, frequency_penalty=2.0),
        ask("none", LONG[:30], max_tokens=60),
    ]
    answers = run(make_engine(max_num_batched_tokens=40), requests)
    for request in requests:
        assert_solo(answers, request)
    assert answers.tokens("all") != answers.tokens("none")


def test_logprobs_are_of_the_raw_logits_chosen_first() -> None:
    request = ask("r", LONG[:20], max_tokens=5, logprobs=3, presence_penalty=1.5, temperature=1.3)
    answers = run(make_engine(), [request, ask("other", LONG[:8], logprobs=0), ask("plain", LONG[:8])])
    context = list(LONG[:20])
    for delta in answers.deltas["r", 0]:
        (found,), (token,) = delta.logprobs or (), delta.token_ids
        logits = logits_of(chain_of(context))
        expected = log_softmax(logits)
        best = np.argsort(-logits, kind="stable")[:3].tolist()
        assert list(found) == list(dict.fromkeys([token, *best]))
        for token_id, entry in found.items():
            assert entry.logprob == expected[token_id]
            assert entry.rank == 1 + (logits > logits[token_id]).sum()
        context.append(token)
    assert [len(d.logprobs[0]) for d in answers.deltas["other", 0] if d.logprobs] == [1] * 16
    assert all(d.logprobs is None for d in answers.deltas["plain", 0])


@pytest.mark.parametrize("budget", [8, 13, 512])
def test_prompt_logprobs_come_once_with_the_first_delta(budget: int) -> None:
    engine = make_engine(max_num_seqs=4, max_num_batched_tokens=budget)
    run(engine, [ask("warm", LONG[:70])])
    request = ask("r", LONG[:70], max_tokens=4, prompt_logprobs=2, n=2, temperature=1.0)
    answers = run(engine, [request, ask("other", LONG[:10])])
    assert_solo(answers, request)
    first, *rest = answers.deltas["r", 0]
    assert first.num_cached_tokens == 0
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == 70
    assert all(d.prompt_logprobs is None for d in rest + answers.deltas["r", 1])
    for position in range(1, 70):
        found, logits = first.prompt_logprobs[position], logits_of(chain_of(LONG[:position]))
        assert found is not None
        best = np.argsort(-logits, kind="stable")[:2].tolist()
        assert list(found) == list(dict.fromkeys([LONG[position], *best]))
        assert found[LONG[position]].logprob == log_softmax(logits)[LONG[position]]


def test_whole_vocabulary_logprobs_limit_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuili.engine.scheduler.MAX_LOGPROB_ENTRIES", 10 * VOCAB)
    backend = FakeBackend(keep_batches=True)
    answers = run(make_engine(backend), [ask("r", LONG[:35], max_tokens=2, logprobs=-1, prompt_logprobs=-1)])
    assert [len(b.input_ids) for b in backend.batches] == [10, 10, 10, 5, 1]
    first = answers.deltas["r", 0][0]
    assert first.prompt_logprobs is not None
    assert [len(p or ()) for p in first.prompt_logprobs] == [0] + [VOCAB] * 34
    assert first.logprobs is not None
    assert len(first.logprobs[0]) == VOCAB


def test_one_prompt_token_has_no_prompt_logprobs_but_says_so() -> None:
    answers = run(make_engine(), [ask("r", [5], max_tokens=2, prompt_logprobs=1)])
    assert answers.deltas["r", 0][0].prompt_logprobs == (None,)


def test_prefix_hits_change_nothing_but_the_work() -> None:
    engine = make_engine()
    request = ask("a", LONG, max_tokens=20)
    cold = run(engine, [request])
    before = engine.stats()
    warm = run(engine, [ask("b", LONG, max_tokens=20)])
    after = engine.stats()
    assert warm.tokens("b") == cold.tokens("a")
    assert (cold.last("a").num_cached_tokens, warm.last("b").num_cached_tokens) == (0, 64)
    assert after.num_prefix_hits - before.num_prefix_hits == 64
    assert after.num_prefix_queries - before.num_prefix_queries == 75
    assert after.num_computed_tokens - before.num_computed_tokens == 75 - 64 + 19


def test_output_is_found_by_the_next_turn_and_one_token_is_always_computed() -> None:
    engine = make_engine()
    output = run(engine, [ask("a", LONG[:20], max_tokens=30)]).tokens("a")
    turn = LONG[:20] + output[:-2]  # 48 tokens: three whole blocks
    answers = run(engine, [ask("b", turn, max_tokens=2)])
    assert answers.tokens("b") == output[-2:]
    assert answers.last("b").num_cached_tokens == 32


def test_salts_and_the_switch_keep_prefixes_apart() -> None:
    engine = make_engine()
    run(engine, [ask("a", LONG, salt="x")])
    assert run(engine, [ask("b", LONG, salt="y")]).last("b").num_cached_tokens == 0
    assert run(engine, [ask("c", LONG, salt="x")]).last("c").num_cached_tokens == 64
    off = make_engine(enable_prefix_caching=False)
    run(off, [ask("a", LONG)])
    assert run(off, [ask("b", LONG)]).last("b").num_cached_tokens == 0
    assert off.stats().num_prefix_queries == 0


def test_a_window_group_alone_frees_what_falls_behind() -> None:
    engine = make_engine(FakeBackend(windows=(16,)), blocks=4, max_num_seqs=1, max_num_batched_tokens=16)
    request = ask("r", LONG, max_tokens=None)
    assert_solo(run(engine, [request]), request)  # 127 tokens through 64 tokens of cache


def test_a_window_prefix_needs_only_its_last_window() -> None:
    backend = FakeBackend(windows=(None, 20))
    engine = make_engine(backend, max_num_batched_tokens=32)
    run(engine, [ask("a", LONG)])
    pool = engine.blocks.pools[1]
    hashes = [pool._hash_of[b] for b in pool._cached]
    assert len(hashes) >= 4
    first = next(b for b, digest in pool._hash_of.items() if digest == _digests(LONG, 1)[0])
    pool._free.append(first)  # evict the window group's first block
    del pool._cached[first], pool._block_of[pool._hash_of.pop(first)]
    answers = run(engine, [ask("b", LONG), ask("short", LONG[:18])])
    assert answers.last("b").num_cached_tokens == 64
    assert answers.last("short").num_cached_tokens == 0
    assert answers.tokens("b") == solo(ask("b", LONG), 0, 128)[0]


def _digests(tokens: list[int], count: int) -> list[bytes]:
    from tuili.engine.cache.prefix_cache import HashChain, chain_root

    return HashChain(16, chain_root("bfloat16", "")).first(count, tokens)


def test_priority_then_arrival() -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=64)
    finished: list[str] = []

    def note(delta: TokenDelta) -> None:
        if delta.finish_reason:
            finished.append(delta.request_id)

    for name, priority in [("first", 0), ("late", 5), ("plain", 0), ("urgent", -3), ("plain 2", 0)]:
        engine.add(ask(name, LONG[:5], max_tokens=3, priority=priority), note)
        engine.step()
    while engine.step():
        pass
    assert finished == ["first", "urgent", "plain", "plain 2", "late"]


def test_the_lowest_priority_is_preempted() -> None:
    engine = make_engine(blocks=6, max_num_seqs=4, max_model_len=96)
    answers = Answers()
    for name, priority in [("low", 9), ("high", 0), ("mid", 4)]:
        engine.add(ask(name, LONG[:20], max_tokens=50, priority=priority), answers)
    preempted = 0
    while engine.step():
        engine.check()
        if engine.stats().num_preemptions > preempted == 0:
            assert [s.request.request_id for s in engine._scheduler.waiting] == ["low"]
            preempted = 1
    assert preempted
    assert len(answers.tokens("low")) == len(answers.tokens("high")) == 50
    assert answers.tokens("low") == answers.tokens("high") == answers.tokens("mid")


def test_nobody_new_overtakes_a_prompt_that_waits_for_blocks() -> None:
    engine, answers = make_engine(blocks=7, max_num_seqs=4, max_num_batched_tokens=36), Answers()
    requests = [ask("grows", LONG[:31], max_tokens=20), ask("long", LONG + LONG[:5], max_tokens=5)]
    for request in requests:
        engine.add(request, answers)
    engine.step()
    engine.step()
    requests.append(ask("new", LONG[:5], max_tokens=5))
    engine.add(requests[-1], answers)
    engine.step()  # "grows" takes a block, "long" would need two and one is left: enough for "new"
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (2, 1, (1,))
    while engine.step():
        engine.check()
    for request in requests:
        assert_solo(answers, request)
    assert engine.stats().num_preemptions == 0


def test_sixteen_requests_in_a_pool_for_two_and_a_half() -> None:
    engine = make_engine(blocks=12, max_num_seqs=16, max_num_batched_tokens=64, max_model_len=80)
    requests = [ask(f"r{i}", LONG[i : i + 12], max_tokens=66, temperature=0.5, seed=i, logprobs=1) for i in range(16)]
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request, 80)
    assert engine.stats().num_preemptions >= 20


@pytest.mark.parametrize("phase", range(0, 24, 2))
def test_abort_at_any_phase_frees_everything_and_disturbs_nobody(phase: int) -> None:
    engine = make_engine(max_num_seqs=3, max_num_batched_tokens=10)
    answers = Answers()
    requests = [
        ask("long", LONG, max_tokens=20),
        ask("n", LONG[:30], n=3, temperature=1.0, max_tokens=20),
        ask("stays", LONG[:12], max_tokens=20),
    ]
    for request in requests:
        engine.add(request, answers)
    for _ in range(phase):
        engine.step()
    engine.abort("n", 1)
    engine.check()
    engine.abort("long")
    engine.abort("unknown")
    engine.abort("long", 0)
    engine.abort("stays", 7)
    while engine.step():
        engine.check()
    assert_idle(engine)
    assert_solo(answers, requests[2])
    assert answers.reason("long") == "abort"
    assert answers.last("long").token_ids == ()
    for index in range(3):
        tokens, reason = solo(requests[1], index, 128)
        if index != 1:
            assert (answers.tokens("n", index), answers.reason("n", index)) == (tokens, reason)
        else:
            assert answers.reason("n", 1) == "abort"
            assert answers.tokens("n", 1) == tokens[: len(answers.tokens("n", 1))]


@pytest.mark.parametrize("late", [False, True])
def test_a_failing_step_ends_its_sequences_and_no_others(late: bool, caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend(fail_on={6}, fail_late=late)
    engine = make_engine(backend, max_num_seqs=2, max_num_batched_tokens=32)
    requests = [ask(f"r{i}", LONG[:20], max_tokens=10) for i in range(5)]
    answers = run(engine, requests)
    assert [answers.reason(f"r{i}") for i in range(5)] == ["error", "error", "length", "length", "length"]
    error = answers.last("r0").error
    assert type(error) is TuiliError
    assert str(error) == "the backend failed while computing a step"
    assert "0xdeadbeef" in caplog.text
    for request in requests[2:]:
        assert_solo(answers, request)
    assert answers.last("r2").num_cached_tokens == 0  # what lies in the cache after a failure is not trusted


def test_a_running_sequence_outside_a_failed_step_starts_over() -> None:
    backend = FakeBackend(error=EngineUnavailableError("the device is gone"))
    engine, answers = make_engine(backend, blocks=3), Answers()
    first, second = ask("a", LONG[:16], max_tokens=20), ask("b", LONG[1:17], max_tokens=20)
    engine.add(first, answers)
    engine.add(second, answers)
    engine.step()
    engine.step()  # a takes the last block, b waits for one
    assert (len(answers.tokens("a")), len(answers.tokens("b")), engine.stats().num_running) == (2, 1, 2)
    backend.fail_on = {3}
    while engine.step():
        engine.check()
    assert str(answers.last("a").error) == "the device is gone"
    assert_solo(answers, second)
    assert_idle(engine)


def test_a_broken_sink_aborts_its_request_only(caplog: pytest.LogCaptureFixture) -> None:
    engine, answers, calls = make_engine(), Answers(), []

    def broken(delta: TokenDelta) -> None:
        calls.append(delta)
        if len(calls) == 3:
            raise OSError("connection reset")

    engine.add(ask("broken", LONG[:9], n=2, temperature=1.0), broken)
    request = ask("r", LONG[:9])
    engine.add(request, answers)
    while engine.step():
        engine.check()
    assert len(calls) == 3
    assert_solo(answers, request)
    assert_idle(engine)
    assert "'broken'" in caplog.text


def test_a_sink_may_abort_and_add() -> None:
    engine, answers = make_engine(), Answers()
    follow_up, inside = ask("next", LONG[:6], max_tokens=3), []

    def sink(delta: TokenDelta) -> None:
        assert not inside, "a sink is never called from within itself"
        inside.append(delta)
        answers(delta)
        if delta.index == 0 and len(answers.tokens("r", 0)) == 4 and delta.finish_reason is None:
            engine.abort("r")
            engine.add(follow_up, answers)
        inside.clear()

    engine.add(ask("r", LONG[:9], n=3, temperature=1.0), sink)
    while engine.step():
        engine.check()
    assert [answers.reason("r", i) for i in range(3)] == ["abort"] * 3
    assert [len(answers.tokens("r", i)) for i in range(3)] == [4, 4, 4]
    assert_solo(answers, follow_up)
    assert_idle(engine)


def test_close_ends_everything_and_takes_no_more() -> None:
    backend = FakeBackend()
    engine, answers = make_engine(backend, max_num_seqs=1), Answers()
    engine.add(ask("a", LONG[:9], n=2, temperature=1.0), answers)
    engine.add(ask("b", LONG[:9]), answers)
    engine.step()
    engine.close()
    assert {key: d[-1].finish_reason for key, d in answers.deltas.items()} == dict.fromkeys(
        [("a", 0), ("a", 1), ("b", 0)], "error"
    )
    assert isinstance(answers.last("b").error, EngineUnavailableError)
    assert_idle(engine)
    assert not backend.closed
    with pytest.raises(EngineUnavailableError, match="closed"):
        engine.add(ask("c", LONG[:9]), answers)


def test_requests_that_cannot_be_served_are_refused_with_the_numbers() -> None:
    engine = make_engine(blocks=4)  # 64 tokens of cache, context of 128
    sink = Answers()
    cases = [
        (ask("r", []), InvalidRequestError, "at least one token"),
        (ask("r", [1, VOCAB]), InvalidRequestError, r"prompt_token_ids.*\[0, 61\), got 61"),
        (ask("r", [1, -1]), InvalidRequestError, "got -1"),
        (ask("r", [1, 2.5]), InvalidRequestError, "got 2.5"),  # type: ignore[list-item]
        (ask("r", [1], stop_token_ids=[99]), InvalidRequestError, "stop_token_ids.*got 99"),
        (ask("r", [1], logit_bias={400: 1.0}), InvalidRequestError, "logit_bias.*got 400"),
        (ask("r", [1], logprobs=62), InvalidRequestError, "logprobs must be at most the vocabulary's 61, got 62"),
        (ask("r", [1], seed=2**64), InvalidRequestError, "seed must be"),
        (ask("r", [1] * 128), ContextLengthError, "prompt has 128 tokens; the context holds 128"),
        (ask("r", [1] * 100, min_tokens=29, max_tokens=40), ContextLengthError, "100 tokens and min_tokens is 29"),
        (ask("r", [1] * 60, max_tokens=6), ContextLengthError, "needs room for 65; the KV cache holds 64"),
        (ask("r", [1] * 65, max_tokens=None), ContextLengthError, "needs room for 65; the KV cache holds 64"),
    ]
    for request, error, message in cases:
        with pytest.raises(error, match=message):
            engine.add(request, sink)
    assert not engine.has_work()
    answers = run(engine, [ask("fits", [1] * 60, max_tokens=5), ask("open", [1] * 60, max_tokens=None)])
    assert len(answers.tokens("fits")) == len(answers.tokens("open")) == 5


def test_a_request_id_in_use_is_refused() -> None:
    engine = make_engine()
    engine.add(ask("r", [1]), Answers())
    with pytest.raises(InvalidRequestError, match="'r' is already in use"):
        engine.add(ask("r", [2]), Answers())


def test_prompt_logprobs_come_with_the_first_answer_that_is_left() -> None:
    engine = make_engine()
    deltas: list[TokenDelta] = []
    engine.add(ask("r", range(1, 6), n=2, temperature=1.0, prompt_logprobs=0, max_tokens=2), deltas.append)
    engine.abort("r", 0)
    while engine.step():
        engine.check()
    told = [delta for delta in deltas if delta.prompt_logprobs is not None]
    assert [delta.index for delta in told] == [1]
    assert told[0].prompt_logprobs is not None
    assert len(told[0].prompt_logprobs) == 5


def test_abort_with_a_sink_leaves_requests_of_others_alone() -> None:
    engine = make_engine()
    deltas: list[TokenDelta] = []
    engine.add(ask("r", range(1, 6), max_tokens=2), deltas.append)
    engine.abort("r", sink=lambda _: None)
    while engine.step():
        engine.check()
    assert [delta.finish_reason for delta in deltas] == [None, "length"]


def test_closing_ends_every_answer_even_when_the_books_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    deltas: list[TokenDelta] = []
    engine.add(ask("r", range(1, 6), n=3, temperature=1.0), deltas.append)

    def broken(_: object) -> None:
        raise AssertionError("out of order")

    monkeypatch.setattr(engine._scheduler, "finish", broken)
    with pytest.raises(AssertionError, match="out of order"):
        engine.close()
    assert [(delta.index, delta.finish_reason) for delta in deltas] == [(0, "error"), (1, "error"), (2, "error")]
