"""Steps that are built while the one before runs: the same answers, token by token, and nothing leaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, solo
from tuili.engine import turns
from tuili.engine.engine import Engine
from tuili.types import TokenRequest

LONG = [(7 * i + 3) % VOCAB for i in range(75)]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many answers as run here are then one group or several, where there are stages."""
    monkeypatch.setattr(turns, "MIN_GROUP", 2)


def both(requests: list[TokenRequest], **limits: Any) -> tuple[Answers, Answers, FakeBackend]:
    """The answers in the synchronous order and in the other."""
    backend = FakeBackend(is_asynchronous=True)
    return run(make_engine(**limits), requests), run(make_engine(backend, **limits), requests), backend


def asynchronous(**limits: Any) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend(is_asynchronous=True)
    return make_engine(backend, **limits), backend


def test_a_step_is_handed_over_while_another_runs() -> None:
    requests = [ask(f"r{i}", LONG[: 9 + i], max_tokens=20, temperature=0.7 * (i % 2), logprobs=i) for i in range(4)]
    expected, found, backend = both(requests)
    assert found.deltas.keys() == expected.deltas.keys()
    for key, deltas in found.deltas.items():
        assert [(d.token_ids, d.logprobs, d.finish_reason) for d in deltas] == [
            (d.token_ids, d.logprobs, d.finish_reason) for d in expected.deltas[key]
        ]
    assert backend.max_under_way == 2
    assert backend.num_steps == 20  # nobody ends unforeseen: not one is computed in vain
    assert backend.num_carried == 4 * 19


def test_an_answer_that_stops_leaves_a_token_aside() -> None:
    tokens, _ = solo(ask("r", LONG[:9], max_tokens=30), 0, 128)
    stop = next(t for t in tokens if tokens.index(t) > 5)
    request = ask("r", LONG[:9], max_tokens=30, stop_token_ids=[stop])
    engine, backend = asynchronous()
    answers = run(engine, [request])
    assert_solo(answers, request)
    assert backend.num_steps == tokens.index(stop) + 2
    assert engine.stats().num_computed_tokens == 9 + tokens.index(stop)


@pytest.mark.parametrize(
    "sampling",
    [
        {"dry_multiplier": 0.8, "dry_penalty_last_n": -1},
        {"bad_words": ((3, 4), (5, 6))},
        {"n": 3, "temperature": 0.7},
    ],
)
def test_who_needs_the_token_on_the_host_gets_it_first(sampling: dict[str, Any]) -> None:
    request = ask("r", LONG[:9], max_tokens=12, **sampling)
    engine, backend = asynchronous()
    assert_solo(run(engine, [request]), request)
    if "n" in sampling:  # one prompt until the first tokens are there, then three answers that go on
        assert backend.num_carried == 3 * 10
    else:
        assert backend.num_carried == 0


def test_an_aborted_answers_processor_is_not_called_any_more() -> None:
    called: list[int] = []

    def noting(ids: list[int], row: Any) -> Any:
        called.append(len(ids))
        return row

    engine, _ = asynchronous()
    answers = Answers()
    first = ask("first", LONG[:9], max_tokens=12)
    engine.add(first, answers)
    engine.step()
    engine.add(ask("r", LONG[:9], max_tokens=12, logits_processors=[noting]), answers)
    engine.step()
    assert not called
    assert engine.stats().num_running == 2  # its first step is under way
    engine.abort("r")
    while engine.step():
        engine.check()
    assert_solo(answers, first)
    assert not called


def test_what_a_sampler_goes_on_from_stays_on_the_device() -> None:
    request = ask("r", LONG[:9], max_tokens=12, mirostat=2, temperature=0.7)
    beside = ask("beside", LONG[:20], max_tokens=20)
    engine, backend = asynchronous()
    answers = run(engine, [request, beside])
    assert_solo(answers, request)
    assert_solo(answers, beside)
    assert backend.num_carried == 11 + 19


@pytest.mark.parametrize("last_n", [-1, 1, 2, 8])
def test_penalties_count_the_token_that_is_coming(last_n: int) -> None:
    penalties = {"repetition_penalty": 1.7, "frequency_penalty": 0.6, "presence_penalty": 0.5, "repeat_last_n": last_n}
    requests = [ask(f"r{i}", LONG[: 9 + i], max_tokens=20, temperature=0.9 * i, **penalties) for i in range(3)]
    engine, backend = asynchronous()
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request)
    assert backend.num_carried == 3 * 19


def test_min_tokens_count_the_token_that_is_coming() -> None:
    tokens, _ = solo(ask("r", LONG[:9], max_tokens=30), 0, 128)
    request = ask("r", LONG[:9], max_tokens=30, min_tokens=6, stop_token_ids=tokens[:8])
    expected, found, backend = both([request])
    assert found.tokens("r") == expected.tokens("r")
    assert backend.num_carried


def test_prompts_join_and_are_cut_while_others_run() -> None:
    requests = [ask(f"r{i}", LONG[i:], max_tokens=9 + i, prompt_logprobs=i % 2 or None) for i in range(6)]
    expected, found, backend = both(requests, max_num_batched_tokens=24, max_num_seqs=3)
    for key, deltas in found.deltas.items():
        assert deltas[0].prompt_logprobs == expected.deltas[key][0].prompt_logprobs
    assert backend.max_under_way == 2
    for request in requests:
        assert_solo(found, request)


def test_without_blocks_the_step_under_way_is_waited_for() -> None:
    requests = [ask(f"r{i}", LONG[i : i + 20], max_tokens=50) for i in range(4)]
    engine, backend = asynchronous(blocks=9, max_num_seqs=4)
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request)
    assert engine.stats().num_preemptions
    assert backend.num_carried


def test_the_prefix_cache_finds_what_a_step_under_way_writes() -> None:
    engine, _ = asynchronous(max_num_batched_tokens=40)
    answers = Answers()
    first, second = ask("a", LONG, max_tokens=4), ask("b", [*LONG[:64], 1, 2], max_tokens=4)
    engine.add(first, answers)
    engine.add(second, answers)
    while engine.step():
        engine.check()
    assert_solo(answers, first)
    assert_solo(answers, second)
    assert answers.last("b").num_cached_tokens == 32  # what the first step was computing when the second was built


def test_blocks_filled_by_carried_tokens_are_found_later() -> None:
    engine, _ = asynchronous()
    first = ask("a", LONG[:9], max_tokens=60)
    tokens = run(engine, [first]).tokens("a")
    again = ask("b", [*LONG[:9], *tokens], max_tokens=3)
    answers = run(engine, [again])
    assert answers.last("b").num_cached_tokens == 64
    assert_solo(answers, again)


def test_an_abort_reaches_answers_of_a_step_under_way() -> None:
    engine, _ = asynchronous()
    answers = Answers()
    requests = [ask("a", LONG[:20], max_tokens=30), ask("b", LONG[:9], max_tokens=30)]
    for request in requests:
        engine.add(request, answers)
    for _ in range(5):
        engine.step()
    engine.abort("a")
    assert answers.reason("a") == "abort"
    engine.check()
    late = ask("c", LONG[:30], max_tokens=8)  # takes the slot and the blocks that the step still writes
    engine.add(late, answers)
    while engine.step():
        engine.check()
    assert_idle(engine)
    assert answers.tokens("a") == solo(requests[0], 0, 128)[0][:5]
    assert_solo(answers, requests[1])
    assert_solo(answers, late)


def test_an_abort_of_one_answer_leaves_the_rows_of_the_others() -> None:
    engine, _ = asynchronous(max_num_batched_tokens=32)
    answers = Answers()
    many = ask("many", LONG, n=3, temperature=0.8, max_tokens=9)
    engine.add(ask("first", LONG[:5], max_tokens=40), answers)
    engine.add(many, answers)
    while not any(len(chunk.samples) == 3 for launch in engine._under_way for chunk in launch.chunks):
        engine.step()
    engine.abort("many", 1)
    while engine.step():
        engine.check()
    assert_idle(engine)
    assert answers.tokens("many", 1) == []
    for index in (0, 2):
        assert answers.tokens("many", index) == solo(many, index, 128)[0]


def test_when_all_have_ended_the_step_under_way_is_nobodys() -> None:
    engine, _ = asynchronous()
    answers = Answers()
    engine.add(ask("a", LONG[:9], max_tokens=30), answers)
    for _ in range(3):
        engine.step()
    engine.abort("a")
    assert not engine.has_work()
    assert not engine._under_way
    again = ask("b", LONG[:9], max_tokens=6)
    assert_solo(run(engine, [again]), again)


@pytest.mark.parametrize("fails_late", [False, True])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_failure_ends_its_own_step_and_spares_the_others(step: int, fails_late: bool) -> None:
    engine, backend = asynchronous(max_num_batched_tokens=16, max_num_seqs=4)
    backend.fail_on, backend.fail_late = {step}, fails_late
    answers = Answers()
    requests = [ask(f"r{i}", LONG[i : i + 14], max_tokens=12) for i in range(8)]
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        engine.check()
    assert_idle(engine)
    reasons = [answers.reason(request.request_id) for request in requests]
    assert "error" in reasons
    assert "length" in reasons
    for request, reason in zip(requests, reasons, strict=True):
        tokens, _ = solo(request, 0, 128)
        found = answers.tokens(request.request_id)
        assert found == (tokens if reason == "length" else tokens[: len(found)])


def test_a_closed_engine_leaves_the_step_under_way() -> None:
    engine, _ = asynchronous()
    answers = Answers()
    engine.add(ask("a", LONG[:9], max_tokens=30), answers)
    engine.step()
    assert engine._under_way
    engine.close()
    assert answers.reason("a") == "error"
    assert_idle(engine)


REQUESTS = st.builds(
    lambda stem, length, seed, **sampling: ([(stem * i + stem) % VOCAB for i in range(length)], seed, sampling),
    st.integers(1, 2),
    st.integers(1, 70),
    st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.7]),
    n=st.just(1),
    max_tokens=st.integers(1, 36),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=6),
    logprobs=st.sampled_from([None, 2]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    repeat_last_n=st.sampled_from([-1, 1, 2, 9]),
)


@pytest.mark.no_cover  # the same lines many times over
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    works=st.lists(st.tuples(REQUESTS, st.integers(0, 6)), min_size=1, max_size=8),
    aborts=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 30)), max_size=2),
    windows=st.sampled_from([(None,), (None, 20), (16,)]),
    blocks=st.integers(7, 16),
    max_num_seqs=st.integers(1, 6),
    spare_tokens=st.sampled_from([0, 11, 200]),
    num_stages=st.integers(1, 4),
)
def test_the_order_changes_no_token(
    works: list[Any],
    aborts: list[tuple[int, int]],
    windows: tuple[int | None, ...],
    blocks: int,
    max_num_seqs: int,
    spare_tokens: int,
    num_stages: int,
) -> None:
    """works come so many steps after one another; aborts are (which, after which step)."""
    engine = make_engine(
        FakeBackend(windows=windows, is_asynchronous=True, num_stages=num_stages),
        blocks=blocks,
        max_model_len=112,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_tokens,
    )
    answers, requests, num_steps = Answers(), [], 0

    def step() -> bool:
        nonlocal num_steps
        goes_on = engine.step()
        engine.check()
        num_steps += 1
        for which, after in aborts:
            if after == num_steps:
                engine.abort(f"r{which}")
        return goes_on and engine.has_work()

    for i, ((prompt, seed, sampling), pause) in enumerate(works):
        requests.append(ask(f"r{i}", prompt, seed=seed, **sampling))
        engine.add(requests[-1], answers)
        for _ in range(pause):
            step()
    while step():
        pass
    assert_idle(engine)
    for request in requests:
        if answers.reason(request.request_id) == "abort":
            found = answers.tokens(request.request_id)
            assert found == solo(request, 0, 112)[0][: len(found)]
        else:
            assert_solo(answers, request, 112)
