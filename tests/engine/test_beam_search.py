"""Beams against transformers' on tiny random models, and under every pressure the engine knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from support import tiny_models
from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, chain_of, log_softmax, logits_of
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.config import EngineConfig
from tuili.engine.beam_search import BeamSearch
from tuili.engine.engine import Engine
from tuili.errors import InvalidRequestError
from tuili.models.families import for_hf
from tuili.types import BeamSearchParams, SamplingParams, TokenRequest

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

PAD = 96
SETTINGS: list[dict[str, Any]] = [
    {"beam_width": 1},
    {"beam_width": 2, "early_stopping": True},
    {"beam_width": 4},
    {"beam_width": 4, "early_stopping": True, "length_penalty": 0.0},
    {"beam_width": 3, "early_stopping": "never", "length_penalty": 2.0},
    {"beam_width": 5, "early_stopping": "never", "length_penalty": -1.0},
    {"beam_width": 6, "length_penalty": -0.5, "max_tokens": 1},
]
PROMPT = [(5 * i + 2) % VOCAB for i in range(21)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Peaked enough that beams come near the end token."""
    model = tiny_models.build("llama", seed=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.5)
    return model


@pytest.fixture(scope="module")
def backend(model: PreTrainedModel) -> Iterator[Backend]:
    spec = tiny_models.spec_of(model)
    weights = tiny_models.canonical(model, for_hf("llama"), spec)
    backend = load_backend("cpu", spec, weights, BackendOptions(max_model_len=128, num_threads=1))
    yield backend
    backend.close()


def search(request_id: str, prompt: list[int], eos: tuple[int, ...] = (), **params: Any) -> TokenRequest:
    p = BeamSearchParams(**params)
    return TokenRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(n=p.beam_width, max_tokens=p.max_tokens, ignore_eos=p.ignore_eos, seed=0),
        seed=0,
        eos_token_ids=eos,
        beam_search=p,
    )


def beams(answers: Answers, request: TokenRequest) -> list[tuple[list[int], float]]:
    found = []
    for index in range(request.sampling.n):
        delta = answers.last(request.request_id, index)
        assert delta.error is None
        assert delta.beam is not None
        assert delta.beam.cumulative_logprob == pytest.approx(math.fsum(delta.beam.logprobs))
        found.append((list(delta.token_ids), delta.beam.score))
    return found


def expected_beams(
    model: PreTrainedModel, prompt: list[int], eos: tuple[int, ...], p: BeamSearchParams
) -> list[tuple[list[int], float]]:
    """What transformers finds, padding cut off."""
    found = model.generate(
        torch.tensor([prompt]),
        num_beams=p.beam_width,
        num_return_sequences=p.beam_width,
        max_new_tokens=p.max_tokens,
        early_stopping=p.early_stopping,
        length_penalty=p.length_penalty,
        do_sample=False,
        eos_token_id=list(eos) or None,
        pad_token_id=PAD,
        output_scores=True,
        return_dict_in_generate=True,
    )
    rows = [row[len(prompt) :].tolist() for row in found.sequences]
    ends = [next((i + 1 for i, t in enumerate(row) if t in eos), len(row)) for row in rows]
    scores = found.sequences_scores.tolist() if p.beam_width > 1 else [0.0]  # greedy there, without a score
    return [(row[:end], score) for row, end, score in zip(rows, ends, scores, strict=True)]


def search_with(model: PreTrainedModel, prompt: list[int], eos: tuple[int, ...], p: BeamSearchParams) -> BeamSearch:
    """The search over transformers' own logits."""
    found = BeamSearch(p, frozenset(eos), p.max_tokens)
    parents: list[int] | None = [0]
    while parents is not None:
        with torch.no_grad():
            texts = torch.tensor([[*prompt, *beam.token_ids] for beam in found.beams])
            best = torch.topk(torch.log_softmax(model(texts).logits[:, -1], -1), found.num_candidates)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        parents = found.advance([list(zip(ids, logprobs, strict=True)) for ids, logprobs in rows])
    return found


@pytest.mark.parametrize("eos", [(), (7,), (7, 30, 41)], ids=str)
@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_the_search_is_that_of_transformers(
    model: PreTrainedModel, params: dict[str, Any], eos: tuple[int, ...]
) -> None:
    p, prompt = BeamSearchParams(**{"max_tokens": 10, **params}), [(3 * k) % 97 for k in range(9)]
    found = search_with(model, prompt, eos, p).finished
    expected = expected_beams(model, prompt, eos, p)
    assert [list(f.beam.token_ids) for f in found] == [token_ids for token_ids, _ in expected]
    if p.beam_width > 1:
        assert [f.score for f in found] == pytest.approx([score for _, score in expected], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("params", [SETTINGS[1], SETTINGS[4]], ids=str)
def test_the_engine_finds_the_same_beams(model: PreTrainedModel, backend: Backend, params: dict[str, Any]) -> None:
    """Several at once; scores within what keys and values in bfloat16 cost."""
    p = {"max_tokens": 10, **params}
    requests = [search(f"r{i}", [(k * (i + 3)) % 97 for k in range(4 + 9 * i)], eos=(7,), **p) for i in range(3)]
    answers = run(Engine(backend, EngineConfig(max_model_len=128, block_size=16, max_num_seqs=8)), requests)
    for request in requests:
        found = beams(answers, request)
        expected = expected_beams(model, list(request.prompt_token_ids), (7,), BeamSearchParams(**p))
        assert [token_ids for token_ids, _ in found] == [token_ids for token_ids, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=0.02)


def solo(request: TokenRequest) -> list[tuple[tuple[int, ...], float]]:
    """The search over the fake backend's logits, without an engine."""
    assert request.beam_search is not None
    stops = frozenset() if request.beam_search.ignore_eos else frozenset(request.eos_token_ids)
    found = BeamSearch(request.beam_search, stops, request.beam_search.max_tokens)
    parents: list[int] | None = [0]
    while parents is not None:
        candidates = []
        for beam in found.beams:
            logprobs = log_softmax(logits_of(chain_of([*request.prompt_token_ids, *beam.token_ids])))
            order = sorted(range(VOCAB), key=lambda i: (-logprobs[i], i))
            candidates.append([(i, float(logprobs[i])) for i in order[: min(found.num_candidates, VOCAB)]])
        parents = found.advance(candidates)
    return [(f.beam.token_ids, f.score) for f in found.finished]


def assert_solo_beams(answers: Answers, request: TokenRequest) -> None:
    assert [(tuple(t), s) for t, s in beams(answers, request)] == solo(request)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    blocks=st.sampled_from([6, 8, 12, None]),
    max_num_seqs=st.integers(1, 9),
    windows=st.sampled_from([(None,), (None, 20), (16,)]),
    lengths=st.integers(0, 10_000),
    early=st.sampled_from([True, False, "never"]),
    caching=st.booleans(),
)
def test_beams_do_not_depend_on_what_runs_beside_them(
    widths: list[int], blocks: int | None, max_num_seqs: int, windows: Any, lengths: int, early: Any, caching: bool
) -> None:
    """Few slots and blocks: beams wait for each other, are parked, preempted and computed anew."""
    requests = [
        search(
            f"r{i}",
            PROMPT[: 1 + (lengths + 7 * i) % 21],
            eos=(i,),
            beam_width=width,
            max_tokens=1 + (lengths >> i) % 40,
            early_stopping=early,
        )
        for i, width in enumerate(widths)
    ]
    plain = ask("plain", PROMPT, max_tokens=30)
    engine = make_engine(FakeBackend(windows=windows), blocks, max_num_seqs=max_num_seqs, enable_prefix_caching=caching)
    answers = run(engine, [*requests, plain])
    for request in requests:
        assert_solo_beams(answers, request)


def test_beams_share_the_blocks_of_what_they_have_in_common() -> None:
    backend = FakeBackend(keep_batches=True)
    run(make_engine(backend), [search("r", PROMPT, beam_width=4, max_tokens=6)])
    assert sum(len(batch.input_ids) for batch in backend.batches) == len(PROMPT) + 5 * 4
    last = backend.batches[-1].block_tables[0]
    assert len(set(last[:, 0].tolist())) == 1  # the full block of the prompt
    assert len(set(last[:, 1].tolist())) == 4


def test_temperature_divides_the_logits(backend: Backend, model: PreTrainedModel) -> None:
    request = search("r", PROMPT, beam_width=3, max_tokens=1, temperature=2.0)
    engine = Engine(backend, EngineConfig(max_model_len=128, block_size=16))
    logprobs = torch.log_softmax(torch.tensor(tiny_models.logits(model, PROMPT)[-1]) / 2.0, -1)
    best = torch.topk(logprobs, 3)
    for (token_ids, score), i, wanted in zip(
        beams(run(engine, [request]), request), best.indices.tolist(), best.values.tolist(), strict=True
    ):
        assert token_ids == [i]
        assert score == pytest.approx(wanted, abs=2e-2)


def test_a_search_can_be_aborted_and_fails_as_a_whole() -> None:
    answers, engine = Answers(), make_engine(FakeBackend(fail_on={9}))
    for name in ("aborted", "failed"):
        engine.add(search(name, PROMPT, beam_width=3, max_tokens=40), answers)
    for _ in range(4):
        engine.step()
    engine.abort("aborted")
    while engine.step():
        engine.check()
    assert_idle(engine)
    assert [answers.reason("aborted", i) for i in range(3)] == ["abort"] * 3
    assert [answers.reason("failed", i) for i in range(3)] == ["error"] * 3


@pytest.mark.parametrize("length_penalty", [-10.0, 10.0])
@pytest.mark.parametrize("early", [True, False, "never"])
def test_scores_are_finite_for_every_length(length_penalty: float, early: Any) -> None:
    params = BeamSearchParams(beam_width=1, max_tokens=2**31 - 1, length_penalty=length_penalty, early_stopping=early)
    found = BeamSearch(params, frozenset({7}), params.max_tokens)
    for _ in range(2000):
        found.advance([[(1, -0.5), (2, -9.0)]])
    found.advance([[(7, -0.5), (1, -9.0)]])
    assert all(math.isfinite(f.score) and f.score < 0 for f in found.finished)
    assert len(found.finished) == 1
    with pytest.raises(InvalidRequestError, match="length_penalty"):
        BeamSearchParams(beam_width=1, max_tokens=1, length_penalty=length_penalty * 1.01)


def test_a_vanishing_temperature_is_bounded() -> None:
    request = search("r", PROMPT, beam_width=2, max_tokens=3, temperature=1e-310)
    for _, score in beams(run(make_engine(), [request]), request):
        assert math.isfinite(score)


def test_a_search_that_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = BeamSearch.advance

    def failing(self: BeamSearch, candidates: Any) -> list[int] | None:
        if len(self.beams) == 3 and len(self.beams[0].token_ids) == 2:
            raise OverflowError
        return advance(self, candidates)

    monkeypatch.setattr(BeamSearch, "advance", failing)
    other, plain = search("other", PROMPT, beam_width=2, max_tokens=6), ask("plain", PROMPT, max_tokens=8)
    answers = run(make_engine(), [search("bad", PROMPT, beam_width=3, max_tokens=6), other, plain])
    assert [answers.reason("bad", i) for i in range(3)] == ["error"] * 3
    assert_solo_beams(answers, other)
    assert_solo(answers, plain)


def test_beams_tell_when_they_were_first_scheduled() -> None:
    answers = run(make_engine(), [search("r", PROMPT, beam_width=2, max_tokens=3)])
    assert all(answers.last("r", i).scheduled_s is not None for i in range(2))


def test_an_idle_beam_that_gives_way_is_not_computed_for_nothing() -> None:
    """Short of blocks, a beam that has told its candidates is parked: nobody computes it to hear the same."""
    backend = FakeBackend(keep_batches=True)
    request = search("r", PROMPT, beam_width=4, max_tokens=12)
    engine = make_engine(backend, 6, max_num_seqs=5, enable_prefix_caching=False)
    answers = Answers()
    engine.add(ask("first", PROMPT, max_tokens=40), answers)
    engine.add(request, answers)
    told: list[tuple[int, int]] = []
    group = engine._groups["r"]
    monkey = group.tell

    def tell(sequence: Any, result: Any, row: int) -> None:
        told.append((len(sequence.token_ids), sequence.indexes[0]))
        monkey(sequence, result, row)

    group.tell = tell  # type: ignore[method-assign]
    while engine.step():
        engine.check()
    assert engine.stats().num_preemptions > 0
    assert len(told) == len(set(told))
    assert_solo_beams(answers, request)


def test_closing_ends_searches() -> None:
    answers, engine = Answers(), make_engine()
    engine.add(search("r", PROMPT, beam_width=3, max_tokens=40), answers)
    for _ in range(4):
        engine.step()
    engine.close()
    assert [answers.reason("r", i) for i in range(3)] == ["error"] * 3
    assert set(itertools.chain(answers.deltas)) == {("r", i) for i in range(3)}
