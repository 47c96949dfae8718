"""A draft model saves steps of the target, changes no bit, leaves no block behind, and rests where it does not pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, solo
from support.misguided import Misguided
from tuili.backend import Batch, StepResult
from tuili.engine.drafts.draft_model import CATCH_UP_TOKENS, MAX_FED, DraftModel
from tuili.engine.engine import Engine
from tuili.types import TokenDelta

LONG = [(7 * i + 3) % VOCAB for i in range(75)]
STOP = solo(ask("r", LONG[:30], max_tokens=40), 0, 128)[0][22]
MANNERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 2**63},
    "several": {"temperature": 1.2, "n": 3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    "window": {"repetition_penalty": 1.3, "frequency_penalty": 0.25, "repeat_last_n": 9},
    "dry": {"allowed_token_ids": [1, 2, 3], "dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_penalty_last_n": -1},
    "bias": {"logit_bias": {5: 4.0, 9: -100.0}},
    "stop": {"stop_token_ids": [STOP]},
    "min tokens": {"min_tokens": 23, "stop_token_ids": [STOP]},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 1},
}


def told(deltas: list[TokenDelta]) -> dict[str, Any]:
    return {
        "token_ids": [t for delta in deltas for t in delta.token_ids],
        "logprobs": [entry for delta in deltas for entry in delta.logprobs or ()],
        "prompt_logprobs": [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs],
        "ending": (deltas[-1].finish_reason, deltas[-1].stop_token_id),
    }


def draft_model(engine: Engine) -> DraftModel:
    assert engine._speculation is not None
    drafter = engine._speculation._drafter
    assert isinstance(drafter, DraftModel)
    return drafter


def costing(target: FakeBackend, draft: FakeBackend, share: float) -> Callable[[], float]:
    """A clock by which a step of the draft model takes `share` of one of the target, whatever its rows."""
    return lambda: target.num_steps + share * draft.num_steps


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
@pytest.mark.parametrize("wrong_every", [3, 7, 1000])
def test_drafts_save_steps_and_change_nothing(manner: dict[str, Any], wrong_every: int) -> None:
    request = ask("r", LONG[:30], **{"max_tokens": 40, **manner})
    plain_backend, backend = FakeBackend(windows=(None, 20)), FakeBackend(windows=(None, 20))
    plain = run(make_engine(plain_backend), [request])
    engine = make_engine(backend, draft=Misguided(windows=(18, None), wrong_every=wrong_every))
    drafted = run(engine, [request])
    for index in range(request.sampling.n):
        assert told(drafted.deltas["r", index]) == told(plain.deltas["r", index])
    stats = engine.stats()
    assert stats.num_draft_tokens >= stats.num_accepted_tokens > 10
    assert stats.num_draft_tokens == stats.num_accepted_tokens or wrong_every < 1000, "guessed by another text"
    assert backend.num_steps < 0.75 * plain_backend.num_steps


def test_several_are_drafted_side_by_side() -> None:
    backend, draft = FakeBackend(), Misguided(keep_batches=True)
    requests = [ask(name, LONG[: 5 + i], max_tokens=40) for i, name in enumerate("abc")]
    answers = run(make_engine(backend, draft=draft), requests)
    for request in requests:
        assert_solo(answers, request)
    assert max(len(batch.seq_lens) for batch in draft.batches) == 3
    assert draft.num_steps < 50  # of 120 tokens


def test_a_text_that_lies_behind_is_caught_up_with_in_bounded_parts() -> None:
    draft = Misguided(keep_batches=True)
    engine = make_engine(draft=draft)
    requests = [ask("a", LONG, max_tokens=40), ask("b", LONG[::-1], max_tokens=40)]
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request)
    parts = [batch for batch in draft.batches if not len(batch.sample_rows)]
    assert len(parts) >= 4
    assert max(len(batch.input_ids) for batch in parts) == CATCH_UP_TOKENS
    fed = [np.diff(batch.query_start).max() for batch in draft.batches if len(batch.sample_rows)]
    assert max(fed) <= MAX_FED
    assert engine.stats().num_accepted_tokens > 20


def test_a_long_prompt_with_a_short_answer_is_not_followed() -> None:
    draft = Misguided()
    request = ask("r", LONG, max_tokens=8)
    assert_solo(run(make_engine(draft=draft), [request]), request)
    assert draft.num_steps == 0


def test_a_prefix_is_computed_once() -> None:
    draft = Misguided(keep_batches=True)
    engine = make_engine(draft=draft)
    run(engine, [ask("a", LONG[:70], max_tokens=40)])
    before = len(draft.batches)
    request = ask("b", [*LONG[:64], 1], max_tokens=40)
    assert_solo(run(engine, [request]), request)
    assert min(batch.positions[0] for batch in draft.batches[before:]) == 64
    engine.reset_prefix_cache()
    before = len(draft.batches)
    run(engine, [ask("c", [*LONG[:64], 2], max_tokens=40)])
    assert min(batch.positions[0] for batch in draft.batches[before:]) == 0


@pytest.mark.parametrize(("share", "wrong_every"), [(1.0, 1000), (0.2, 1), (1.5, 7)])
def test_what_does_not_pay_is_soon_left_and_tried_ever_more_rarely(share: float, wrong_every: int) -> None:
    backend, draft = FakeBackend(), Misguided(wrong_every=wrong_every)
    engine = make_engine(backend, draft=draft, clock=costing(backend, draft, share), max_model_len=1000)
    request = ask("r", LONG[:5], max_tokens=600)
    assert_solo(run(engine, [request]), request, 1000)
    assert 1 <= draft.num_steps <= 40
    assert share * draft.num_steps + backend.num_steps <= 1.05 * 600


def test_what_pays_is_used() -> None:
    backend, draft = FakeBackend(), Misguided(wrong_every=12)
    engine = make_engine(backend, draft=draft, clock=costing(backend, draft, 0.1), max_model_len=1000)
    request = ask("r", LONG[:5], max_tokens=600)
    assert_solo(run(engine, [request]), request, 1000)
    assert 0.1 * draft.num_steps + backend.num_steps < 600 / 2.5


def test_other_sequences_learn_from_one() -> None:
    backend, draft = FakeBackend(), Misguided(wrong_every=1)
    engine = make_engine(backend, draft=draft, clock=costing(backend, draft, 0.3))
    run(engine, [ask("a", LONG[:5], max_tokens=60)])
    before = draft.num_steps
    run(engine, [ask("b", LONG[:6], max_tokens=20)])
    assert draft.num_steps - before <= 1


def test_a_text_that_the_draft_model_cannot_hold_goes_on_without() -> None:
    draft = Misguided(keep_batches=True)
    request = ask("r", LONG[:30], max_tokens=80)
    assert_solo(run(make_engine(draft=draft, draft_len=64), [request]), request)
    assert max(batch.seq_lens.max() for batch in draft.batches) <= 64
    assert draft.num_steps > 20


@pytest.mark.parametrize("late", [False, True])
def test_a_draft_model_that_fails_is_left_alone(late: bool, caplog: pytest.LogCaptureFixture) -> None:
    draft = Misguided(fail_on={7}, fail_late=late)
    engine = make_engine(draft=draft)
    requests = [ask("a", LONG[:30], max_tokens=40), ask("b", LONG[:20], max_tokens=40)]
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request)
    assert draft.num_steps == 7
    assert "the draft model failed" in caplog.text


def test_blocks_go_with_abort_and_close() -> None:
    draft = Misguided()
    engine, answers = make_engine(draft=draft), Answers()
    for name in "ab":
        engine.add(ask(name, LONG[:30], temperature=1.0, n=2, max_tokens=60), answers)
    for _ in range(6):
        engine.step()
    blocks = draft_model(engine)._blocks
    assert blocks.pools[0].num_free < blocks.pools[0].num_blocks
    engine.abort("a")
    engine.check()
    engine.close()
    assert_idle(engine)
    assert blocks.pools[0].num_free == blocks.pools[0].num_blocks


class Undefined(Misguided):
    """Its logits are not finite from one position on."""

    def _answer(self, batch: Batch, chains: np.ndarray) -> StepResult:
        result = super()._answer(batch, chains)
        result.token_ids[batch.sampling.position >= 40] = -1
        return result


def test_a_draft_ends_where_the_draft_model_chooses_nothing() -> None:
    request = ask("r", LONG[:30], max_tokens=30)
    engine = make_engine(draft=Undefined())
    assert_solo(run(engine, [request]), request)
    assert 0 < engine.stats().num_draft_tokens <= 10


def test_both_caches_come_out_of_one_budget() -> None:
    target, draft = FakeBackend(block_bytes=3), Misguided(windows=(None, None))
    engine = make_engine(target, draft=draft, max_num_seqs=2, kv_cache_memory_bytes=50)
    assert engine.stats().num_blocks == (10,)
    assert draft.num_blocks == [10, 10]
