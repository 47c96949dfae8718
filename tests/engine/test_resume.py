"""A request that goes on in another engine says exactly what it would have said: cut behind every delta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from support.answers import Answers, ask, assert_idle, make_engine, run
from support.fake_backend import VOCAB, solo
from support.misguided import Misguided
from support.oracle_drafter import OracleDrafter
from tuili.beam_search_params import BeamSearchParams
from tuili.engine.engine import Engine
from tuili.errors import InvalidRequestError
from tuili.types import Resume, SamplingParams, TokenDelta, TokenRequest

PROMPT = [(7 * i) % VOCAB for i in range(21)]
BAD_WORDS = ((5,), (9,), *((i, (i + 3) % VOCAB) for i in range(VOCAB)))
REQUESTS = {
    "greedy": ask("r", PROMPT, max_tokens=14),
    "sampled": ask("r", PROMPT, temperature=0.8, seed=11, max_tokens=14),
    "penalties": ask(
        "r", PROMPT, temperature=0.8, max_tokens=14, presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.2
    ),
    "min_tokens": ask("r", PROMPT, temperature=1.5, max_tokens=16, min_tokens=9, eos=tuple(range(0, VOCAB, 3))),
    "stop_token_ids": ask("r", PROMPT, temperature=1.5, max_tokens=20, stop_token_ids=[3, 4, 5]),
    "logprobs": ask("r", PROMPT, temperature=0.8, max_tokens=10, logprobs=3, prompt_logprobs=2),
    "n": ask("r", PROMPT, temperature=1.5, n=4, max_tokens=10, logprobs=0, eos=tuple(range(0, VOCAB, 9))),
    "bad_words": ask("r", PROMPT, temperature=0.8, max_tokens=14, bad_words=BAD_WORDS),
    "dry": ask("r", PROMPT, max_tokens=14, dry_multiplier=0.75, dry_penalty_last_n=-1),
    "window": ask("r", PROMPT, max_tokens=14, repetition_penalty=1.4, frequency_penalty=0.5, repeat_last_n=9),
    "mirostat": ask("r", PROMPT, temperature=0.8, n=2, max_tokens=10, mirostat=2),
}
ENGINES: dict[str, Callable[[], Engine]] = {
    "plain": make_engine,
    "small": lambda: make_engine(blocks=9, max_num_seqs=3, max_num_batched_tokens=11),
    "drafts": lambda: make_engine(drafter=OracleDrafter(5, 3, 128)),
    "draft_model": lambda: make_engine(draft=Misguided((None,), wrong_every=3)),
}


def in_order(request: TokenRequest, engine: Engine) -> list[TokenDelta]:
    deltas: list[TokenDelta] = []
    engine.add(request, deltas.append)
    while engine.step():
        pass
    assert_idle(engine)
    return deltas


def rest_of(request: TokenRequest, sent: list[TokenDelta]) -> TokenRequest:
    """What is left to ask for once `sent` has come."""
    places = {index: Resume(()) for index in request.indexes}
    for delta in sent:
        place = places[delta.index]
        places[delta.index] = Resume(place.token_ids + delta.token_ids, delta.sampler_state)
        if delta.finish_reason is not None:
            del places[delta.index]
    told = any(delta.prompt_logprobs for delta in sent)
    sampling = replace(request.sampling, prompt_logprobs=None) if told else request.sampling
    return replace(request, sampling=sampling, resume=places)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", REQUESTS)
def test_cut_behind_every_delta(name: str, engine: str) -> None:
    request, make = REQUESTS[name], ENGINES[engine]
    whole = in_order(request, make())
    for cut in range(len(whole)):
        sent = whole[:cut]
        rest = in_order(rest_of(request, sent), make())
        for index in request.indexes:
            parts = [delta for delta in sent + rest if delta.index == index]
            tokens = [token_id for delta in parts for token_id in delta.token_ids]
            assert (tokens, parts[-1].finish_reason) == solo(request, index, 128)
            assert [delta.finish_reason for delta in parts[:-1]] == [None] * (len(parts) - 1)
            uncut = [delta for delta in whole if delta.index == index]
            for field in ("logprobs", "prompt_logprobs"):
                assert _joined(parts, field) == _joined(uncut, field)
            assert parts[-1].sampler_state == uncut[-1].sampler_state
            assert parts[-1].stop_token_id == uncut[-1].stop_token_id


def _joined(deltas: list[TokenDelta], field: str) -> list[object]:
    return [entry for delta in deltas for entry in getattr(delta, field) or ()]


def test_resumed_answers_of_many_requests_run_side_by_side() -> None:
    engine, answers, asked = make_engine(max_num_seqs=5), Answers(), []
    for i, request in enumerate(REQUESTS.values()):
        sent = in_order(request, make_engine())[: i + 1]
        asked.append((replace(request, request_id=f"r{i}"), sent))
        engine.add(replace(rest_of(request, sent), request_id=f"r{i}"), answers)
    while engine.step():
        engine.check()
    for request, sent in asked:
        for index in request.indexes:
            before = [token_id for delta in sent if delta.index == index for token_id in delta.token_ids]
            tokens = before + answers.tokens(request.request_id, index)
            assert tokens == solo(request, index, 128)[0]


def test_an_answer_that_went_in_circles_ends_where_it_would_have() -> None:
    request = ask(
        "r", PROMPT, max_tokens=14, logit_bias={5: 100.0}, repetition_detection={"max_pattern_size": 1, "min_count": 4}
    )
    whole = in_order(request, make_engine())
    assert whole[-1].stop_reason == "repetition_detected"
    for cut in range(1, len(whole)):
        rest = in_order(rest_of(request, whole[:cut]), make_engine())
        assert [(d.token_ids, d.stop_reason) for d in rest] == [(d.token_ids, d.stop_reason) for d in whole[cut:]]


def test_a_resumed_answer_can_be_aborted() -> None:
    request = rest_of(REQUESTS["n"], in_order(REQUESTS["n"], make_engine())[:6])
    engine, answers = make_engine(), Answers()
    engine.add(request, answers)
    engine.step()
    for index in request.indexes:
        engine.abort("r", index)
    assert [answers.reason("r", index) for index in request.indexes] == ["abort"] * len(request.indexes)
    assert_idle(engine)


REFUSED = {
    "no answers": ({}, {}, r"resume must name answers in \[0, 1\), got "),
    "an answer that is not asked for": ({1: Resume((1,))}, {}, r"in \[0, 1\), got 1"),
    "an id beyond the vocabulary": ({0: Resume((VOCAB,))}, {}, "resume: token ids must be integers"),
    "all its tokens": ({0: Resume((1,) * 16)}, {}, "answer 0 has 16 tokens already and may have 16"),
    "no mu": ({0: Resume((1,))}, {"mirostat": 1, "temperature": 1.0}, "answer 0 needs its sampler_state"),
    "no average": ({0: Resume((1,))}, {"adaptive_target": 0.3, "temperature": 1.0}, "0 needs its sampler_state"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_resume_that_cannot_be_is_refused(case: str) -> None:
    resume, sampling, message = REFUSED[case]
    request = replace(ask("r", PROMPT, **{"max_tokens": 16, **sampling}), resume=resume)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=message) as error:
        make_engine().add(request, Answers())
    assert error.value.param == "resume"


def test_a_beam_search_is_never_resumed() -> None:
    request = TokenRequest(
        request_id="r",
        prompt_token_ids=(1, 2),
        sampling=SamplingParams(n=2, max_tokens=4),
        seed=0,
        beam_search=BeamSearchParams(beam_width=2, max_tokens=4),
        resume={0: Resume((3,))},
    )
    with pytest.raises(InvalidRequestError, match="a beam search starts over"):
        make_engine().check_request(request)


MISSES = {
    "off": ({"enable_prefix_caching": False}, [], ask("r", PROMPT), ("off", 0)),
    "prompt logprobs": ({}, [], ask("r", PROMPT, prompt_logprobs=0), ("prompt_logprobs", 0)),
    "nothing before": ({}, [], ask("r", PROMPT), ("new", 0)),
    "another beginning": ({}, [ask("a", [1, *PROMPT])], ask("r", PROMPT), ("new", 0)),
    "the same": ({}, [ask("a", PROMPT)], ask("r", PROMPT), ("block_end", 16)),
    "longer": ({}, [ask("a", PROMPT, max_tokens=1)], ask("r", PROMPT + PROMPT), ("new", 16)),
    "parts early": ({}, [ask("a", PROMPT)], ask("r", [*PROMPT[:9], 60, *PROMPT]), ("differs", 9)),
    "parts late": ({}, [ask("a", PROMPT)], ask("r", [*PROMPT[:14], 60, *PROMPT]), ("differs", 14)),
    "parts between blocks": ({}, [ask("a", PROMPT)], ask("r", [*PROMPT[:16], 60, *PROMPT]), ("differs", 16)),
    "its own salt": ({}, [ask("a", PROMPT)], ask("r", PROMPT, salt="s"), ("new_salt", 0)),
    "evicted": (
        {"blocks": 8},
        [ask("a", PROMPT), ask("b", [(60 - i) % VOCAB for i in range(110)])],
        ask("r", PROMPT),
        ("evicted", 0),
    ),
}


@pytest.mark.parametrize("case", MISSES)
def test_why_the_prefix_cache_had_no_more(case: str) -> None:
    limits, earlier, request, miss = MISSES[case]
    engine = make_engine(**limits)  # type: ignore[arg-type]
    for other in earlier:
        run(engine, [other])
    assert run(engine, [request]).last("r").cache_miss == miss


def test_an_emptied_cache_is_new_again() -> None:
    engine = make_engine()
    run(engine, [ask("a", PROMPT)])
    engine.reset_prefix_cache()
    assert run(engine, [ask("r", PROMPT)]).last("r").cache_miss == ("new", 0)
