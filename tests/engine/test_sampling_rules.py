"""What the engine does for samplers: orders become chains, mu is carried along, processors run, circles end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from support.answers import Answers, ask, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, chain_of, logits_of
from support.oracle_drafter import OracleDrafter
from tuili.backend import Batch
from tuili.backend import SamplerKind as Kind
from tuili.engine.sampling.sampler_order import chain_steps, first_state, plain_values
from tuili.errors import InvalidRequestError
from tuili.types import SamplingParams

PROMPT = [(7 * i) % VOCAB for i in range(30)]


def kinds(**params: Any) -> list[Kind]:
    return [step.kind for step in chain_steps(SamplingParams(**params))]


EVERYTHING: dict[str, Any] = {
    "repetition_penalty": 1.1,
    "dry_multiplier": 0.8,
    "top_n_sigma": 1.0,
    "top_k": 40,
    "typical_p": 0.9,
    "top_p": 0.95,
    "min_p": 0.05,
    "xtc_probability": 0.5,
    "temperature": 0.8,
    "adaptive_target": 0.4,
}


def test_samplers_come_in_the_order_asked_for_and_only_if_they_do_something() -> None:
    assert kinds(**EVERYTHING) == [
        Kind.PENALTIES,
        Kind.DRY,
        Kind.TEMPERATURE,
        Kind.TOP_N_SIGMA,
        Kind.MIN_P,
        Kind.TOP_K,
        Kind.TYPICAL_P,
        Kind.TOP_P,
        Kind.XTC,
        Kind.ADAPTIVE_P,
    ]
    llama_cpp = [
        *(Kind.PENALTIES, Kind.DRY, Kind.TOP_N_SIGMA, Kind.TOP_K, Kind.TYPICAL_P, Kind.TOP_P),
        *(Kind.MIN_P, Kind.XTC, Kind.TEMPERATURE),
    ]
    for order in ("edskypmxt", "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature", list("edskypmxt")):
        assert kinds(**EVERYTHING, samplers=order if isinstance(order, str) else "".join(order)) == llama_cpp
    assert kinds(samplers="kpt", **EVERYTHING) == [Kind.TOP_K, Kind.TOP_P, Kind.TEMPERATURE]
    assert kinds(samplers="akt", **EVERYTHING) == [Kind.TOP_K, Kind.TEMPERATURE, Kind.ADAPTIVE_P]
    assert kinds(samplers=["temperature", "top_k"]) == []
    assert kinds(repetition_penalty=1.1, repeat_last_n=0) == []
    assert kinds(**EVERYTHING, mirostat=2) == [Kind.PENALTIES, Kind.DRY, Kind.TEMPERATURE, Kind.MIROSTAT_2]
    assert kinds(**EVERYTHING | {"temperature": 0}) == [Kind.PENALTIES, Kind.DRY]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, (1.0, 0, 1.0, 0.0)),
        ({"temperature": 0.0, "top_k": 5, "top_p": 0.5}, (0.0, 0, 1.0, 0.0)),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1}, (0.7, 5, 0.5, 0.1)),
        ({"samplers": []}, (1.0, 0, 1.0, 0.0)),
        ({"samplers": "tk", "temperature": 0.7, "top_k": 5, "top_p": 0.5}, (0.7, 5, 1.0, 0.0)),
        ({"samplers": "kt", "temperature": 0.7, "top_k": 5}, None),
        ({"top_k": 5, "min_keep": 9}, (1.0, 5, 1.0, 0.0)),
        ({"top_p": 0.5, "min_keep": 9}, None),
        ({"dynatemp_range": 0.5}, None),
        ({"xtc_probability": 0.1}, None),
        ({"typical_p": 0.9}, None),
        ({"mirostat": 1}, None),
        ({"adaptive_target": 0.0}, None),
    ],
)
def test_what_the_default_order_covers_needs_no_chain(params: dict[str, Any], expected: object) -> None:
    s = SamplingParams(**params)
    assert plain_values(s, chain_steps(s)) == expected


def test_mu_is_carried_over_preemption() -> None:
    requests = [
        ask(f"r{i}", PROMPT[: 20 + i], max_tokens=40, mirostat=1 + i % 2, temperature=0.9, seed=i) for i in range(4)
    ]
    engine = make_engine(blocks=9, max_num_seqs=4)
    answers = run(engine, requests)
    assert engine.stats().num_preemptions > 0
    for request in requests:
        assert_solo(answers, request)


def test_what_a_step_carries_at_first() -> None:
    def first(**params: Any) -> float:
        return first_state(chain_steps(SamplingParams(**params)))

    assert first(mirostat=2, mirostat_tau=3.0) == 6.0
    assert first(adaptive_target=0.3) == 0.3
    assert first(adaptive_target=0.3, mirostat=1) == 10.0
    assert math.isnan(first(top_k=3))
    assert math.isnan(first())


@pytest.mark.parametrize("last_n", [1, 5, 33, 1000])
def test_penalties_look_at_the_last_tokens_only(last_n: int) -> None:
    """Over preemption, in answers of n that part, and along drafts."""
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2, "repeat_last_n": last_n}
    requests = [
        ask(f"r{i}", PROMPT[: 20 + i], max_tokens=40, n=1 + i, temperature=0.9, seed=i, **penalties) for i in range(3)
    ]
    engine = make_engine(blocks=12, max_num_seqs=4)
    answers = run(engine, requests)
    assert engine.stats().num_preemptions > 0
    drafted = make_engine(drafter=OracleDrafter(wrong_every=3))
    request = ask("d", PROMPT, max_tokens=30, **penalties)
    assert_solo(run(drafted, [request]), request)
    assert drafted.stats().num_accepted_tokens > 0
    for request in requests:
        assert_solo(answers, request)


STATEFUL = [{"mirostat": 2}, {"adaptive_target": 0.3}]


@pytest.mark.parametrize("manner", [*STATEFUL, {"logits_processors": [lambda ids, logits: logits]}], ids=" ".join)
def test_nothing_is_drafted_where_a_row_depends_on_the_choice_before(manner: dict[str, Any]) -> None:
    engine = make_engine(drafter=OracleDrafter(wrong_every=100))
    run(engine, [ask("r", PROMPT, max_tokens=20, temperature=0.9, **manner)])
    assert engine.stats().num_draft_tokens == 0


def test_processors_see_their_tokens_and_change_the_choice() -> None:
    calls: list[tuple[list[int], list[int]]] = []

    def only_even(prompt: list[int], output: list[int], logits: np.ndarray) -> np.ndarray:
        assert logits.shape == (VOCAB,)
        assert np.array_equal(logits, logits_of(chain_of(prompt + output)))
        calls.append((prompt, output))
        logits[1::2] = -np.inf
        return logits

    def no_twos(output: list[int], logits: np.ndarray) -> np.ndarray:
        logits[2] = -np.inf
        return logits

    subject = ask("r", PROMPT, max_tokens=12, logits_processors=[only_even, no_twos], logprobs=2)
    others = [ask(f"o{i}", PROMPT[i:], max_tokens=9, prompt_logprobs=1) for i in range(3)]
    answers = run(make_engine(max_num_batched_tokens=32), [others[0], subject, *others[1:]])
    tokens = answers.tokens("r")
    assert calls == [(PROMPT, tokens[:i]) for i in range(12)]
    context = list(PROMPT)
    for delta in answers.deltas["r", 0]:
        raw = logits_of(chain_of(context))
        token = delta.token_ids[0]
        assert token == max(range(0, VOCAB, 2), key=lambda i: (raw[i] if i != 2 else -1, -i))
        assert delta.logprobs is not None
        entry = delta.logprobs[0][token]
        assert entry.logprob == pytest.approx(float(raw[token]) - math.log(np.exp(raw.astype(float)).sum()), abs=1e-5)
        assert entry.rank == 1 + (raw > raw[token]).sum()
        context.append(token)
    for other in others:
        assert_solo(answers, other)


def test_samplers_follow_processors_and_each_of_n_has_its_own() -> None:
    manner: dict[str, Any] = {
        "n": 3,
        "max_tokens": 10,
        "temperature": 1.1,
        "seed": 4,
        "repetition_penalty": 1.2,
        "allowed_token_ids": list(range(0, 40, 2)),
        "min_tokens": 3,
        "stop_token_ids": [4, 6, 8],
    }
    expected = run(make_engine(), [ask("r", PROMPT, **manner)])
    processed = run(make_engine(), [ask("r", PROMPT, logits_processors=[lambda ids, logits: logits], **manner)])
    for index in range(3):
        assert processed.tokens("r", index) == expected.tokens("r", index)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda ids, logits: 1 / 0, "ZeroDivisionError"),
        (lambda ids, logits: logits[:5], r"shape \(5,\)"),
        (lambda ids, logits: None, "must return|raised"),
        (lambda ids, logits: logits - np.inf, "-inf"),
        (lambda ids, logits: logits * np.nan, "nan"),
        (lambda ids, logits: logits + np.float32(3e38), "1e.30"),
        (lambda: None, "TypeError"),
    ],
)
def test_a_bad_processor_ends_its_own_request_only(processor: Any, message: str) -> None:
    good = ask("good", PROMPT, max_tokens=8)
    answers = run(make_engine(), [ask("bad", PROMPT, max_tokens=8, logits_processors=[processor]), good])
    error = answers.last("bad").error
    assert isinstance(error, InvalidRequestError)
    assert error.param == "logits_processors"
    with pytest.raises(InvalidRequestError, match=message):
        raise error
    assert_solo(answers, good)


def test_a_processor_that_fails_for_one_answer_leaves_the_others() -> None:
    calls = []

    def fails_second(output: list[int], logits: np.ndarray) -> np.ndarray:
        calls.append(output)
        if len(calls) == 2:
            raise ValueError("second")
        logits[:] = -np.inf if len(calls) == 3 else logits
        return logits

    answers = run(
        make_engine(), [ask("r", PROMPT, n=3, max_tokens=3, temperature=1.0, logits_processors=[fails_second])]
    )
    assert [answers.reason("r", i) for i in range(3)] == ["length", "error", "error"]
    assert "raised ValueError: second" in str(answers.last("r", 1).error)
    assert "largest within 1e" in str(answers.last("r", 2).error)


def test_processors_do_not_reach_into_the_sequence() -> None:
    def clears(prompt: list[int], output: list[int], logits: np.ndarray) -> np.ndarray:
        prompt.clear()
        output.clear()
        return logits

    request = ask("r", PROMPT, max_tokens=6)
    answers = run(make_engine(), [ask("r", PROMPT, max_tokens=6, logits_processors=[clears, clears])])
    assert_solo(answers, request)


def test_an_answer_that_goes_in_circles_ends() -> None:
    bias = {5: 100.0}
    rule = {"max_pattern_size": 3, "min_count": 4}
    answers = run(make_engine(), [ask("r", PROMPT, max_tokens=50, logit_bias=bias, repetition_detection=rule)])
    last = answers.last("r")
    assert answers.tokens("r") == [5] * 4
    assert (last.finish_reason, last.stop_reason, last.stop_token_id) == ("stop", "repetition_detected", None)
    later = run(
        make_engine(),
        [ask("r", PROMPT, max_tokens=50, min_tokens=9, logit_bias=bias, repetition_detection=rule)],
    )
    assert later.tokens("r") == [5] * 9


def test_bad_words_yield_when_nothing_else_is_allowed() -> None:
    request = ask("r", PROMPT, max_tokens=4, allowed_token_ids=[3, 4], bad_words=((3, 3), (3, 4), (4,)))
    assert run(make_engine(), [request]).tokens("r") == [3, 3, 3, 3]


def test_what_leaves_nothing_to_choose_is_refused() -> None:
    engine, answers = make_engine(), Answers()
    for manner in (
        {"allowed_token_ids": [VOCAB]},
        {"bad_words": ((VOCAB,),)},
        {"bad_words": ((1, 2), (3, -1))},
        {"dry_multiplier": 1.0, "dry_breakers": {VOCAB: ((),)}},
        {"dry_multiplier": 1.0, "dry_breakers": {-1: ((),)}},
        {"allowed_token_ids": [3], "bad_words": ((3,),)},
        {"allowed_token_ids": [3], "min_tokens": 2, "stop_token_ids": [3]},
        {"allowed_token_ids": [3], "min_tokens": 2, "eos": (3,)},
    ):
        with pytest.raises(InvalidRequestError):
            engine.add(ask("r", PROMPT, **manner), answers)


def test_rows_without_samplers_of_their_own_stay_as_they_were() -> None:
    backend = FakeBackend(keep_batches=True)
    run(make_engine(backend), [ask("r", PROMPT, max_tokens=3, temperature=0.7, top_k=9)])
    batch: Batch = backend.batches[-1]
    assert batch.allow_mask is None
    assert batch.want_logits is None
    assert not len(batch.sampling.chain_kinds)
