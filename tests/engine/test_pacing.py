"""Prompts beside running answers: these hardly slow down, the prompts finish, and no token changes."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field

import numpy as np
import pytest

from support.answers import Answers, ask, assert_solo, make_engine, run
from support.fake_backend import VOCAB, FakeBackend, Handle
from support.oracle_drafter import OracleDrafter
from tuili.backend import Batch
from tuili.config import EngineConfig
from tuili.engine.pacing import MAX_UNSEEN_STEPS, ROW_TILE, Pace
from tuili.engine.step_model import StepModel
from tuili.errors import InvalidRequestError
from tuili.types import TokenDelta

LONG = [(5 * i + 1) % VOCAB for i in range(900)]
CONTEXT = 1024


@dataclass
class Machine(FakeBackend):
    """A backend that moves its own clock: every token costs, late ones of a context more."""

    now: float = 0.0
    base_s: float = 4.0
    per_token_s: float = 0.2
    per_sample_s: float = 0.0  # the head's
    per_position_s: float = 0.0004
    noise: random.Random | None = None
    num_prompt_tokens: list[int] = field(default_factory=list)  # of each step

    def execute(self, batch: Batch) -> Handle:
        lengths = np.diff(batch.query_start)
        seconds = self.base_s + self.per_token_s * len(batch.input_ids)
        seconds += self.per_sample_s * len(batch.sample_rows)
        seconds += self.per_position_s * float(batch.positions.sum())
        if self.noise is not None:
            seconds *= self.noise.choice([1.0] * 18 + [1.3, 4.0])
        self.now += seconds
        self.num_prompt_tokens.append(int(lengths[lengths > 1].sum()))
        return super().execute(batch)


@dataclass
class Streams:
    """Eight running answers, then a prompt beside them."""

    machine: Machine
    idle_s: list[float] = field(default_factory=list)  # between two tokens of an answer
    busy_s: list[float] = field(default_factory=list)

    def run(self, max_slowdown: float | None) -> None:
        engine = make_engine(
            self.machine,
            clock=lambda: self.machine.now,
            max_model_len=CONTEXT,
            max_num_seqs=9,
            max_num_batched_tokens=256,
            max_slowdown=max_slowdown,
        )
        last: dict[str, float] = {}
        gaps = self.idle_s

        def stream(delta: TokenDelta) -> None:
            if delta.request_id in last:
                gaps.append(self.machine.now - last[delta.request_id])
            last[delta.request_id] = self.machine.now

        for i in range(8):
            engine.add(ask(f"s{i}", LONG[i : i + 5], max_tokens=None, ignore_eos=True), stream)
        for _ in range(30):
            engine.step()
        gaps = self.busy_s
        prompt = Answers()
        engine.add(ask("long", LONG, max_tokens=1), prompt)
        while not prompt.tokens("long"):
            engine.step()
            engine.check()
        assert_solo(prompt, ask("long", LONG, max_tokens=1), CONTEXT)


def test_running_streams_slow_down_by_no_more_than_was_allowed() -> None:
    streams = Streams(Machine())
    streams.run(2.5)
    idle_s = statistics.median(streams.idle_s)
    assert max(streams.busy_s) <= 3 * idle_s
    assert statistics.median(streams.busy_s) >= 2 * idle_s  # what is allowed is used
    shares = [n for n in streams.machine.num_prompt_tokens[31:] if n]
    assert shares[0] > 2 * shares[-2]  # late tokens of the prompt are dearer
    assert not [n for n in shares[:-1] if n % ROW_TILE]


def test_without_a_limit_a_prompt_takes_all_that_fits() -> None:
    streams = Streams(Machine())
    streams.run(None)
    assert streams.machine.num_prompt_tokens[30] == 256 - 8
    assert max(streams.busy_s) > 10 * statistics.median(streams.idle_s)


def test_a_disturbed_machine_neither_starves_the_prompt_nor_stalls_the_streams() -> None:
    streams = Streams(Machine(noise=random.Random(1)))
    streams.run(2.5)
    undisturbed = sorted(streams.busy_s)[: int(0.85 * len(streams.busy_s))]
    assert undisturbed[-1] <= 3 * statistics.median(streams.idle_s)
    shares = [n for n in streams.machine.num_prompt_tokens[31:] if n]
    assert statistics.mean(shares) >= ROW_TILE


def test_a_prompt_always_advances() -> None:
    streams = Streams(Machine(per_token_s=50.0))
    streams.run(1.01)
    shares = streams.machine.num_prompt_tokens[31:]
    assert shares.count(0) <= len(shares) // MAX_UNSEEN_STEPS + 1
    assert set(shares[:-1]) <= {0, ROW_TILE}


def test_nobody_running_means_no_limit() -> None:
    machine = Machine()
    engine = make_engine(
        machine, clock=lambda: machine.now, max_model_len=CONTEXT, max_num_batched_tokens=256, max_slowdown=1.5
    )
    run(engine, [ask("long", LONG, max_tokens=1)])
    assert machine.num_prompt_tokens == [256, 256, 256, 132]


def test_neither_prompts_nor_drafts_of_a_crowd_exceed_the_limit_in_an_engine_that_has_answered_one() -> None:
    """Steps of one answer tell little of what those of many take."""
    machine = Machine(per_token_s=0.7, per_sample_s=0.3)
    engine = make_engine(
        machine,
        clock=lambda: machine.now,
        max_model_len=CONTEXT,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_slowdown=2.0,
        drafter=OracleDrafter(max_draft=15, wrong_every=3, max_model_len=CONTEXT),
    )
    run(engine, [ask("first", LONG[:40], max_tokens=30)])
    last: dict[str, float] = {}
    gaps: list[float] = []

    def stream(delta: TokenDelta) -> None:
        if delta.request_id in last:
            gaps.append(machine.now - last[delta.request_id])
        last[delta.request_id] = machine.now

    for i in range(16):
        engine.add(ask(f"r{i}", LONG[i : 50 + 4 * i], max_tokens=30), stream)
    while engine.step():
        pass
    assert max(gaps) <= 2.4 * (machine.base_s + 16 * (machine.per_token_s + machine.per_sample_s))
    assert engine.stats().num_accepted_tokens > 16  # drafts there were


@pytest.mark.parametrize("max_slowdown", [None, 1.1, 4.0])
def test_the_share_of_prompts_changes_no_token(max_slowdown: float | None) -> None:
    machine = Machine(windows=(None, 20), noise=random.Random(2))
    engine = make_engine(
        machine,
        clock=lambda: machine.now,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_slowdown=max_slowdown,
    )
    requests = [ask(f"r{i}", LONG[: 5 + 15 * i], max_tokens=20, temperature=0.8, seed=i) for i in range(7)]
    answers = run(engine, requests)
    for request in requests:
        assert_solo(answers, request)


def test_decodes_alone_are_measured_now_and_then() -> None:
    pace = Pace(2.0, StepModel())
    pace.begin(4, 1)
    assert pace.take(0, 100) == 0  # nothing is known yet
    pace.observe(4, [], 1.0)
    for _ in range(MAX_UNSEEN_STEPS):
        pace.begin(4, 1)
        size = pace.take(0, 100)
        assert size > 0
        pace.observe(4, [(0, size)], 1.0 + 0.01 * size)
    pace.begin(4, 1)
    assert pace.take(0, 100) == 0


def test_a_crowd_is_let_in_at_the_pace_of_the_batch_that_it_will_be() -> None:
    pace = Pace(2.0, StepModel())
    for _ in range(20):
        for num_rows in (1, 32):
            pace.observe(num_rows, [], 1.0 + num_rows)
        for size in (50, 100):
            pace.observe(1, [(0, size)], 2.0 + size)  # a second for each token
    pace.begin(1, 1)
    assert pace.take(0, 5000) <= ROW_TILE
    pace.begin(1, 31)
    assert pace.take(0, 5000) in (56, 64)  # 2 * 33 s, less the two of the one who runs


@pytest.mark.parametrize("value", [1, 0.5, float("inf"), float("nan"), "2"])
def test_the_limit_is_checked(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="max_slowdown must be a finite number > 1"):
        EngineConfig(max_model_len=8, max_slowdown=value)  # type: ignore[arg-type]
