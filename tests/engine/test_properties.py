"""Whatever arrives, in whatever order, under whatever limits: the tokens are those of a lone run, and nothing leaks."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.answers import Answers, ask, assert_idle, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, solo
from support.misguided import Misguided
from support.oracle_drafter import OracleDrafter
from tuili.engine import turns
from tuili.types import TokenRequest

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

CONTEXT = 112
GROUPS = st.sampled_from([(None,), (None, 20), (33, None), (16,), (24, 2), (None, 40, 17)])


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many answers as run here are then one group, two or three."""
    monkeypatch.setattr(turns, "MIN_GROUP", 2)


# Few distinct prompts and long common prefixes, so that caches are hit and blocks are shared.
PROMPTS = st.builds(
    lambda stem, length, tail: [(stem * i + stem) % VOCAB for i in range(length)] + tail,
    st.integers(1, 2),
    st.integers(0, 70),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4),
)


@st.composite
def sampling(draw: st.DrawFn) -> dict[str, object]:
    """Sampling parameters that take every path of the engine."""
    temperature = draw(st.sampled_from([0.0, 0.7, 1.5]))
    max_tokens = draw(st.integers(1, 36))
    return {
        "temperature": temperature,
        "n": draw(st.integers(1, 4)) if temperature else 1,
        "max_tokens": max_tokens,
        "min_tokens": draw(st.integers(0, max_tokens)) if draw(st.booleans()) else 0,
        "stop_token_ids": draw(st.lists(st.integers(0, VOCAB - 1), max_size=3)),
        "presence_penalty": draw(st.sampled_from([0.0, 0.0, 0.75])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.0, -0.5])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.2])),
        "repeat_last_n": draw(st.sampled_from([-1, -1, 0, 7])),
        "logit_bias": draw(st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-5, 5).map(float), max_size=2)),
        "logprobs": draw(st.sampled_from([None, None, 0, 3])),
        "prompt_logprobs": draw(st.sampled_from([None, None, None, 1])),
        "dry_multiplier": draw(st.sampled_from([0.0, 0.0, 0.75])),
        "dry_penalty_last_n": -1,
        "mirostat": draw(st.sampled_from([0, 0, 1, 2])),
    }


def limits() -> st.SearchStrategy[dict[str, object]]:
    """Ids or runs of ids that may not be chosen."""
    ids = st.integers(0, VOCAB - 1)
    words = st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), min_size=20, max_size=40).map(tuple)
    allowed = ids.map(lambda k: [i for i in range(VOCAB) if i % 5 != k % 5])
    return (
        st.just({})
        | st.fixed_dictionaries({"bad_words": words})
        | st.fixed_dictionaries({"allowed_token_ids": allowed})
    )


@st.composite
def requests(draw: st.DrawFn, name: str) -> TokenRequest:
    return ask(
        name,
        draw(PROMPTS),
        priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
        seed=draw(st.integers(0, 2**64 - 1)),
        eos=(draw(st.integers(0, VOCAB - 1)),),
        salt=draw(st.sampled_from(["", "", "s"])),
        **draw(limits()),
        **draw(sampling()),
    )


@st.composite
def workloads(draw: st.DrawFn) -> list[TokenRequest]:
    return [draw(requests(f"r{i}")) for i in range(draw(st.integers(1, 8)))]


DRAFTERS = st.builds(OracleDrafter, st.integers(1, 20), st.sampled_from([1, 2, 3, 7, 30]), st.just(CONTEXT))
DRAFT_MODELS = st.builds(
    Misguided, st.sampled_from([(None,), (None, 20), (18,)]), wrong_every=st.sampled_from([1, 2, 3, 7, 1000])
)
DRAFTS = (
    st.just({})
    | st.fixed_dictionaries({"drafter": DRAFTERS})
    | st.fixed_dictionaries({"draft": DRAFT_MODELS, "draft_len": st.sampled_from([60, CONTEXT])})
)

CLOCKS = st.integers(0, 9).map(
    lambda seed: itertools.accumulate(iter(random.Random(seed).random, None), initial=0.0).__next__
)


@st.composite
def engines(draw: st.DrawFn) -> dict[str, object]:
    max_num_seqs = draw(st.integers(1, 6))
    num_stages = draw(st.sampled_from([0, 1, 2, 3]))  # 0: one, and no step ahead
    return {
        "backend": FakeBackend(windows=draw(GROUPS), is_asynchronous=num_stages > 0, num_stages=max(1, num_stages)),
        "blocks": draw(st.integers(7, 20)),  # 7 hold one whole context
        "max_model_len": CONTEXT,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + draw(st.sampled_from([0, 3, 11, 40, 200])),
        "enable_prefix_caching": draw(st.booleans()),
        **draw(DRAFTS),
        "swap_bytes": draw(st.sampled_from([0, 0, 4, 30])),
        "clock": draw(CLOCKS),
        "max_slowdown": draw(st.sampled_from([None, 1.2, 3.0])),
    }


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=engines(), workload=workloads())
def test_every_answer_is_what_it_would_be_alone(limits: dict[str, object], workload: list[TokenRequest]) -> None:
    answers = run(make_engine(**limits), workload)  # type: ignore[arg-type]
    for request in workload:
        assert_solo(answers, request, CONTEXT)


class Traffic(RuleBasedStateMachine):
    """Requests come, go and fail while the engine steps."""

    @initialize(limits=engines())
    def start(self, limits: dict[str, object]) -> None:
        self.backend = limits["backend"]
        assert isinstance(self.backend, FakeBackend)
        self.engine = make_engine(**limits)  # type: ignore[arg-type]
        self.answers = Answers()
        self.requests: list[TokenRequest] = []

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        request = data.draw(requests(f"r{len(self.requests)}"))
        self.requests.append(request)
        self.engine.add(request, self.answers)

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.requests:
            request = data.draw(st.sampled_from(self.requests))
            index = data.draw(st.sampled_from([None, *range(request.sampling.n)]))
            self.engine.abort(request.request_id, index)
            wanted = range(request.sampling.n) if index is None else [index]
            assert all(self.answers.reason(request.request_id, i) for i in wanted)

    @rule(late=st.booleans())
    def fail(self, late: bool) -> None:
        self.backend.fail_on, self.backend.fail_late = {self.backend.num_steps + 1}, late

    @invariant()
    def accounts_balance(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.step():
            pass
        assert_idle(self.engine)
        for request in self.requests:
            for index in range(request.sampling.n):
                tokens, reason = solo(request, index, CONTEXT)
                found = self.answers.tokens(request.request_id, index)
                if self.answers.reason(request.request_id, index) in ("abort", "error"):
                    assert found == tokens[: len(found)]
                else:
                    assert (found, self.answers.reason(request.request_id, index)) == (tokens, reason)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
