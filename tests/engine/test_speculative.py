"""Drafts save steps and change nothing: the same tokens, logprobs and endings, and no block held for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, solo
from support.oracle_drafter import OracleDrafter
from tuili.backend import Batch, StepResult
from tuili.types import TokenDelta

LONG = [(7 * i + 3) % VOCAB for i in range(75)]
PLAIN = solo(ask("r", LONG[:30], max_tokens=40), 0, 128)[0]
MANNERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 2**63},
    "several": {"temperature": 1.2, "n": 3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    "bias": {"logit_bias": {5: 4.0, 9: -100.0}},
    "stop": {"stop_token_ids": [PLAIN[22]]},
    "bad words": {"bad_words": ((PLAIN[3],), (PLAIN[7], PLAIN[8]))},
    "allowed": {"allowed_token_ids": [i for i in range(VOCAB) if i % 3]},
    "dry": {"dry_multiplier": 2.0, "dry_penalty_last_n": -1},
    "min tokens": {"min_tokens": 23, "stop_token_ids": [PLAIN[5], PLAIN[22], PLAIN[25]]},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 1},
    "all logprobs": {"logprobs": -1},
}


def told(deltas: list[TokenDelta]) -> dict[str, Any]:
    """What a reader learns, however it was cut into deltas."""
    return {
        "token_ids": [t for delta in deltas for t in delta.token_ids],
        "logprobs": [entry for delta in deltas for entry in delta.logprobs or ()],
        "prompt_logprobs": [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs],
        "ending": (deltas[-1].finish_reason, deltas[-1].stop_token_id, str(deltas[-1].error)),
        "num_cached_tokens": deltas[-1].num_cached_tokens,
    }


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
@pytest.mark.parametrize("wrong_every", [2, 5, 100])
def test_drafts_save_steps_and_change_nothing(manner: dict[str, Any], wrong_every: int) -> None:
    request = ask("r", LONG[:30], **{"max_tokens": 40, **manner})
    plain_backend, backend = FakeBackend(windows=(None, 20)), FakeBackend(windows=(None, 20))
    plain = run(make_engine(plain_backend), [request])
    engine = make_engine(backend, drafter=OracleDrafter(wrong_every=wrong_every))
    drafted = run(engine, [request])
    for index in range(request.sampling.n):
        assert told(drafted.deltas["r", index]) == told(plain.deltas["r", index])
    stats = engine.stats()
    assert stats.num_draft_tokens >= stats.num_accepted_tokens >= 10
    assert backend.num_steps < 0.75 * plain_backend.num_steps


def test_what_is_drafted_rightly_comes_in_one_delta() -> None:
    engine = make_engine(drafter=OracleDrafter(max_draft=6, wrong_every=100))
    answers = run(engine, [ask("r", LONG[:30], max_tokens=20)])
    assert [len(delta.token_ids) for delta in answers.deltas["r", 0]] == [1, 1, 7, 7, 4]
    assert engine.stats().num_draft_tokens == engine.stats().num_accepted_tokens == 6 + 6 + 3


def test_a_draft_without_hope_costs_rows_only() -> None:
    backend = FakeBackend()
    engine = make_engine(backend, drafter=OracleDrafter(max_draft=3, wrong_every=1))
    request = ask("r", LONG[:30], max_tokens=20)
    assert_solo(run(engine, [request]), request)
    assert (backend.num_steps, engine.stats().num_accepted_tokens) == (20, 0)


def test_blocks_of_what_was_refused_are_given_back_and_nobody_is_preempted() -> None:
    engine, answers = make_engine(blocks=8, max_num_seqs=2, drafter=OracleDrafter(20, wrong_every=1)), Answers()
    requests = [ask("a", LONG[:30], max_tokens=35), ask("b", LONG[:32], max_tokens=33)]
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        engine.check()
        held = [len(s.token_ids) - 1 for s in engine._scheduler.running]
        stats = engine.stats()
        assert stats.num_blocks[0] - stats.num_free_blocks[0] == sum(-(-n // 16) for n in held)
    for request in requests:
        assert_solo(answers, request)
    assert engine.stats().num_preemptions == 0
    assert engine.stats().num_draft_tokens > 0


def test_a_window_survives_refused_drafts() -> None:
    backend = FakeBackend(windows=(16,))
    engine = make_engine(backend, drafter=OracleDrafter(20, wrong_every=1))
    request = ask("r", LONG, max_tokens=None)
    assert_solo(run(engine, [request]), request)


def test_only_what_was_chosen_is_found_as_a_prefix() -> None:
    engine = make_engine(drafter=OracleDrafter(20, wrong_every=9))
    output = run(engine, [ask("a", LONG[:20], max_tokens=40)]).tokens("a")
    again = ask("b", LONG[:20] + output[:35], max_tokens=5)
    answers = run(engine, [again])
    assert answers.last("b").num_cached_tokens == 48
    assert_solo(answers, again)


def test_steps_with_a_prompt_get_no_drafts_and_the_budget_holds() -> None:
    backend = FakeBackend(keep_batches=True)
    engine = make_engine(backend, max_num_seqs=3, max_num_batched_tokens=8, drafter=OracleDrafter(20, 100))
    requests = [ask("a", LONG[:4], max_tokens=30), ask("b", LONG, max_tokens=9), ask("c", LONG[:9], max_tokens=30)]
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request)
    for batch in backend.batches:
        lengths = np.diff(batch.query_start).tolist()
        assert sum(lengths) <= 8
        assert len(batch.sample_rows) == sum(lengths) or len(batch.sample_rows) <= len(lengths)
    assert engine.stats().num_accepted_tokens > 0


class Undefined(FakeBackend):
    """Its logits are not finite from one position on."""

    first_position = 40

    def _answer(self, batch: Batch, chains: np.ndarray) -> StepResult:
        result = super()._answer(batch, chains)
        result.token_ids[batch.sampling.position >= self.first_position] = -1
        return result


@pytest.mark.parametrize("max_draft", [1, 4, 20])
def test_logits_that_are_not_finite_end_an_answer_at_the_same_token(max_draft: int) -> None:
    request = ask("r", LONG[:30], max_tokens=30)
    plain = run(make_engine(Undefined()), [request]).deltas["r", 0]
    drafted = run(make_engine(Undefined(), drafter=OracleDrafter(max_draft, 100)), [request]).deltas["r", 0]
    assert told(drafted) == told(plain)
    assert "not finite" in told(plain)["ending"][2]
    assert len(told(plain)["token_ids"]) == 10


def test_a_failed_step_ends_its_sequences_with_what_they_had() -> None:
    backend = FakeBackend(fail_on={4})
    engine = make_engine(backend, drafter=OracleDrafter(6, 100))
    request = ask("r", LONG[:30], max_tokens=30)
    answers = run(engine, [request])
    assert answers.reason("r") == "error"
    assert answers.tokens("r") == solo(request, 0, 128)[0][:9]
    assert_idle(engine)
