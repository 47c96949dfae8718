"""A backend in stages: groups of answers take turns, so that no stage waits, and no token is another."""

from __future__ import annotations

from typing import Any

import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend
from support.fake_stages import FakeStages
from support.oracle_drafter import OracleDrafter
from tuili.engine import turns
from tuili.types import TokenRequest

LONG = [(7 * i + 3) % VOCAB for i in range(75)]


def many(count: int, **sampling: Any) -> list[TokenRequest]:
    return [ask(f"r{i}", LONG[i : i + 1], **{"max_tokens": 40, "ignore_eos": True} | sampling) for i in range(count)]


def timed(requests: list[TokenRequest], depth: int, *, has_turns: bool = True, **costs: float) -> FakeStages:
    backend = FakeStages(depth=depth, num_stages=depth if has_turns else 1, **costs)  # type: ignore[arg-type]
    answers = run(make_engine(backend, max_num_seqs=64, clock=backend.clock), requests, checked=False)
    for request in requests:
        assert_solo(answers, request)
    return backend


@pytest.mark.parametrize("depth", [2, 4])
def test_all_stages_work_at_the_same_time(depth: int) -> None:
    requests = many(8 * depth)
    alone, found = (timed(requests, depth, has_turns=has_turns) for has_turns in (False, True))
    assert alone.busy_s == pytest.approx(alone.now, rel=0.05)  # one of them at a time
    assert found.busy_s > 0.9 * depth * found.now
    assert alone.now > 0.9 * depth * found.now
    assert found.num_carried == 0
    assert max(found.sizes[-20:]) == 8
    assert found.max_under_way == depth


def test_what_is_divided_takes_no_longer_where_a_step_costs_as_much_whatever_its_size() -> None:
    requests = many(16)
    alone, found = (timed(requests, 2, has_turns=has_turns, fixed_s=1, token_s=0) for has_turns in (False, True))
    assert found.now < 1.05 * alone.now


def test_few_answers_are_one_group_whose_tokens_are_carried() -> None:
    """A stage would be no sooner done with fewer, and each group's next step would wait for the host."""
    found = timed(many(15), 4, fixed_s=1, token_s=0.01, host_s=0.2)
    assert found.sizes[-20:] == [15] * 20
    assert found.num_carried >= 15 * 38
    assert found.max_under_way == 2


def test_a_single_stage_never_divides() -> None:
    found = timed(many(40), 1)
    assert found.sizes[-20:] == [40] * 20
    assert found.num_carried == 40 * 39


def test_parts_of_a_prompt_follow_each_other_through_the_stages() -> None:
    backend = FakeStages(depth=4, num_stages=4)
    engine = make_engine(backend, max_model_len=1024, max_num_batched_tokens=64, clock=backend.clock)
    request = ask("r", [(5 * i) % VOCAB for i in range(960)], max_tokens=1)
    assert_solo(run(engine, [request]), request, 1024)
    assert backend.sizes == [64] * 15
    assert backend.now == (15 + 3) * 64  # the last one leaves three stages behind the others
    assert backend.max_under_way == 4


def test_an_answer_beside_a_long_prompt_lets_the_next_part_begin() -> None:
    """Were its token carried along, each step would wait for the one before to leave the last stage."""
    backend = FakeStages(depth=2, num_stages=2)
    engine = make_engine(backend, max_model_len=1024, max_num_batched_tokens=65, clock=backend.clock)
    answers = Answers()
    first = ask("first", LONG[:5], max_tokens=60)
    engine.add(first, answers)
    engine.step()
    engine.add(ask("second", [(5 * i) % VOCAB for i in range(960)], max_tokens=1), answers)
    began = backend.now, backend.busy_s
    while answers.reason("second") is None:
        engine.step()
    assert backend.busy_s - began[1] > 0.9 * 2 * (backend.now - began[0])
    while engine.step():
        engine.check()
    assert_idle(engine)
    assert_solo(answers, first, 1024)


def test_a_step_without_answers_is_no_longer_than_one_with_them() -> None:
    """Those whose step is under way wait for it, too."""
    backend = FakeStages(depth=2, num_stages=2)
    engine = make_engine(
        backend, max_model_len=1024, max_num_batched_tokens=512, clock=backend.clock, max_slowdown=20.0, max_num_seqs=8
    )
    answers = Answers()
    for request in many(4, max_tokens=100):
        engine.add(request, answers)
    for _ in range(70):
        engine.step()
    engine.add(ask("long", [(5 * i) % VOCAB for i in range(960)], max_tokens=1), answers)
    del backend.sizes[:]
    while answers.reason("long") is None:
        engine.step()
    assert 8 < max(backend.sizes) < 200


def test_groups_grow_and_shrink_with_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MIN_GROUP", 2)
    backend = FakeBackend(is_asynchronous=True, num_stages=3, keep_batches=True)
    engine, answers = make_engine(backend, max_num_seqs=12), Answers()
    requests = [ask(f"r{i}", LONG[i : i + 5], max_tokens=20 + 6 * i, temperature=0.5, seed=i) for i in range(9)]
    for request in requests[:5]:
        engine.add(request, answers)
    for i in range(400):
        if i in (10, 30, 50, 70):
            engine.add(requests[5 + i // 20], answers)
        engine.step()
        engine.check()
    assert_idle(engine)
    for request in requests:
        assert_solo(answers, request)
    sizes = [len(batch.seq_lens) for batch in backend.batches if not batch.carry.any()]
    assert {1, 2, 3} <= set(sizes)
    assert backend.num_carried  # once few are left
    assert backend.max_under_way == 3


def test_who_has_no_block_waits_until_nothing_is_under_way_and_nobody_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MIN_GROUP", 1)
    requests = [ask(f"r{i}", LONG[i : i + 20], max_tokens=50) for i in range(6)]
    backend = FakeBackend(is_asynchronous=True, num_stages=3)
    engine, answers = make_engine(backend, blocks=10, max_num_seqs=6), Answers()
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        engine.check()
    assert_idle(engine)
    for request in requests:
        assert_solo(answers, request)
    assert engine.stats().num_preemptions
    assert backend.max_under_way == 3


@pytest.mark.parametrize(("blocks", "longer"), [(8, 7), (10, 6), (11, 7)])
def test_no_copy_of_a_block_waits_for_a_later_step(monkeypatch: pytest.MonkeyPatch, blocks: int, longer: int) -> None:
    """Answers part in a step that finds too few blocks: one step later the source may hold another's tokens."""
    monkeypatch.setattr(turns, "MIN_GROUP", 1)
    backend = FakeBackend(is_asynchronous=True, num_stages=3)
    engine, answers = make_engine(backend, blocks=blocks, max_num_seqs=8, enable_prefix_caching=False), Answers()
    requests = [
        ask(f"r{i}", LONG[i : i + 5 + longer * i], max_tokens=30, temperature=0.7, n=1 + i % 3, seed=i)
        for i in range(6)
    ]
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        engine.check()
    for request in requests:
        assert_solo(answers, request)


def test_aborts_and_failures_reach_every_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MIN_GROUP", 1)
    backend = FakeBackend(is_asynchronous=True, num_stages=3)
    engine, answers = make_engine(backend, max_num_seqs=6), Answers()
    requests = [ask(f"r{i}", LONG[i : i + 20], max_tokens=30) for i in range(6)]
    for request in requests:
        engine.add(request, answers)
    for _ in range(8):
        engine.step()
    assert len(engine._under_way) == 2  # and the one that has landed
    gone = engine._under_way[1].chunks[0].sequence.request.request_id
    engine.abort(gone)
    late = ask("late", LONG[:30], max_tokens=8)  # takes the slot and the blocks that the step still writes
    engine.add(late, answers)
    for _ in range(6):
        engine.step()
        engine.check()
    backend.fail_on, backend.fail_late = {backend.num_steps + 1}, True
    while engine.step():
        engine.check()
    assert_idle(engine)
    reasons = {request.request_id: answers.reason(request.request_id) for request in (*requests, late)}
    assert reasons[gone] == "abort"
    assert list(reasons.values()).count("error") == 2  # one group
    for request in (*requests, late):
        if reasons[request.request_id] == "length":
            assert_solo(answers, request)


def test_with_drafts_there_are_no_turns() -> None:
    backend = FakeBackend(is_asynchronous=True, num_stages=2, keep_batches=True)
    requests = many(20)
    answers = run(make_engine(backend, drafter=OracleDrafter(3, 2, 128), max_num_seqs=32), requests)
    for request in requests:
        assert_solo(answers, request)
    assert backend.max_under_way == 1
    assert len(backend.batches[1].seq_lens) == 20


def test_kept_batches_take_turns() -> None:
    """Each group's arrays stay where they are, as a graph may have read their addresses."""
    backend = FakeBackend(is_asynchronous=True, num_stages=2)
    seen: list[int] = []
    execute = backend.execute

    def noting(batch: Any) -> Any:
        seen.append(id(batch.input_ids))
        return execute(batch)

    backend.execute = noting  # type: ignore[method-assign]
    run(make_engine(backend, max_num_seqs=32), many(20))
    assert len(set(seen[-40:])) == 2
    assert all(a != b for a, b in zip(seen[-40:], seen[-39:], strict=False))
