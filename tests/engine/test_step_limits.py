"""Sequences that a backend could not compute, and steps that it computes in parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine
from support.fake_backend import VOCAB, FakeBackend, Handle
from support.misguided import Misguided
from tuili.backend import Batch, StepResult
from tuili.errors import InsufficientMemoryError
from tuili.types import BeamSearchParams, SamplingParams, TokenRequest

LONG = [(7 * i + 3) % VOCAB for i in range(75)]


@dataclass
class ShortBackend(FakeBackend):
    """Has no memory for texts of more than `longest` tokens, and tells `max_tokens` of a step once one was larger."""

    longest: int = 1 << 30
    max_tokens: int | None = None

    def execute(self, batch: Batch) -> Handle:
        result = super().execute(batch).result()
        failed = {int(s): InsufficientMemoryError("too long") for s in np.flatnonzero(batch.seq_lens > self.longest)}
        if not failed and self.max_tokens is None:
            return Handle(result)
        return Handle(self._without(batch, replace(result, failures=failed, max_tokens=self.max_tokens)))

    def _without(self, batch: Batch, result: StepResult) -> StepResult:
        sequences = np.searchsorted(batch.query_start, batch.sample_rows, side="right") - 1
        token_ids = np.where(np.isin(sequences, list(result.failures)), -1, result.token_ids)
        return replace(result, token_ids=token_ids.astype(np.int32))


@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_sequence_that_cannot_be_computed_ends_and_others_go_on(n: int, is_asynchronous: bool) -> None:
    backend = ShortBackend(longest=60, is_asynchronous=is_asynchronous)
    engine, answers = make_engine(backend, max_num_seqs=4, max_num_batched_tokens=20), Answers()
    fine = [ask(f"r{i}", LONG[i : i + 20], max_tokens=20, logprobs=2, prompt_logprobs=1) for i in range(2)]
    bad = [
        ask("in its prompt", LONG, max_tokens=5),
        ask("later", LONG[:50], max_tokens=30, n=n, temperature=0.7, logprobs=1),
    ]
    for request in (fine[0], *bad, fine[1]):
        engine.add(request, answers)
    while engine.step():
        engine.check()
    for request in fine:
        assert_solo(answers, request)
    for request in bad:
        for index in range(request.sampling.n):
            assert isinstance(answers.last(request.request_id, index).error, InsufficientMemoryError)
    assert len(answers.tokens("later")) == 11
    assert_idle(engine)


def test_a_beam_that_cannot_be_computed_ends_its_search_alone() -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=30)
    search = TokenRequest(
        request_id="beams",
        prompt_token_ids=tuple(LONG[:50]),
        sampling=SamplingParams(n=3, max_tokens=30, seed=0),
        seed=0,
        eos_token_ids=(),
        beam_search=params,
    )
    engine, answers = make_engine(ShortBackend(longest=60), max_num_seqs=4), Answers()
    fine = ask("fine", LONG[:20], max_tokens=30)
    for request in (search, fine):
        engine.add(request, answers)
    while engine.step():
        engine.check()
    assert_solo(answers, fine)
    assert all(isinstance(answers.last("beams", i).error, InsufficientMemoryError) for i in range(3))
    assert_idle(engine)


def test_nobody_finds_what_a_failed_sequence_was_to_write() -> None:
    engine, answers = make_engine(Scribbling(longest=60), max_num_seqs=2), Answers()
    engine.add(ask("long", LONG, max_tokens=5), answers)
    engine.add(ask("short", LONG[:50], max_tokens=5), answers)
    while engine.step():
        engine.check()
    again = ask("again", LONG[:40], max_tokens=5)
    engine.add(again, answers)
    while engine.step():
        engine.check()
    assert_solo(answers, again)
    assert_solo(answers, ask("short", LONG[:50], max_tokens=5))
    assert isinstance(answers.last("long").error, InsufficientMemoryError)


class Scribbling(ShortBackend):
    """Leaves garbage where a sequence failed."""

    def _without(self, batch: Batch, result: StepResult) -> StepResult:
        for s in result.failures:
            for slot in batch.slot_mapping[0, batch.query_start[s] : batch.query_start[s + 1]]:
                self.planes[0].positions[slot] = self.planes[0].token_ids[slot] = -7
        return super()._without(batch, result)


def test_prompts_fill_what_decodes_leave_of_a_part() -> None:
    backend = ShortBackend(max_tokens=8, keep_batches=True)
    engine, answers = make_engine(backend, max_num_seqs=12, max_num_batched_tokens=64), Answers()
    requests = [ask(f"r{i}", LONG[i : i + 30], max_tokens=95) for i in range(12)]
    for request in requests:
        engine.add(request, answers)
    while engine.step():
        engine.check()
    assert engine.stats().max_step_tokens == 8
    for request in requests:
        assert_solo(answers, request)
    for batch in backend.batches[1:]:  # the first step tells it
        lengths = np.diff(batch.query_start)
        num_decodes = int((lengths == 1).sum())
        assert int(lengths.sum()) <= -(-(num_decodes + 1) // 8) * 8
    assert max(len(batch.seq_lens) for batch in backend.batches) == 12  # nobody is left out


def test_a_draft_model_without_memory_drafts_no_more() -> None:
    class Failing(Misguided):
        def execute(self, batch: Batch) -> Handle:
            result = super().execute(batch).result()
            return Handle(replace(result, failures={0: InsufficientMemoryError("too long")}))

    request = ask("r", LONG[:20], max_tokens=30)
    engine, answers = make_engine(draft=Failing((None,)), max_num_seqs=2), Answers()
    engine.add(request, answers)
    while engine.step():
        engine.check()
    assert_solo(answers, request)
    assert engine.stats().num_draft_tokens == 0
