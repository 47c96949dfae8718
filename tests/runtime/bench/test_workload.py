"""How rates are counted from the moments at which tokens came."""

from __future__ import annotations

import random

import pytest

from tuili.runtime.bench.workload import Trace, Workload, median_ratio, percentile


def test_decode_counts_only_while_every_sequence_decodes() -> None:
    early, late = (1.0, 2.0, 3.0, 4.0), (2.5, 3.5, 4.5, 5.5)
    trace = Trace(num_prompt_tokens=10, token_times_s=(early, late))
    assert trace.prefill_tokens_per_s == 10 / 2.5
    assert trace.decode_tokens_per_s == 3 / 1.5  # 3.0, 3.5 and 4.0 lie in (2.5, 4.0]
    assert trace.first_token_times_s() == [1.0, 2.5]
    assert trace.gaps_s() == [1.0] * 6


def test_one_sequence_counts_all_but_its_first_token() -> None:
    assert Trace(num_prompt_tokens=4, token_times_s=((2.0, 2.25, 2.5),)).decode_tokens_per_s == 2 / 0.5


def test_sequences_that_never_decode_together_have_no_rate() -> None:
    assert Trace(num_prompt_tokens=2, token_times_s=((1.0, 2.0), (3.0, 4.0))).decode_tokens_per_s is None
    assert Trace(num_prompt_tokens=2, token_times_s=((1.0,),)).decode_tokens_per_s is None


def test_prompts_are_distinct_new_and_inside_the_vocabulary() -> None:
    workload, rng = Workload(num_seqs=4, prompt_len=16), random.Random(0)
    prompts = workload.prompts(1000, rng) + workload.prompts(1000, rng)
    assert len(set(prompts)) == 8
    assert {len(prompt) for prompt in prompts} == {16}
    assert all(100 <= token < 900 for prompt in prompts for token in prompt)
    assert all(0 <= token < 8 for token in Workload().prompts(8, rng)[0])
    assert workload.max_tokens == 65


def test_percentiles_and_ratios() -> None:
    assert [percentile(range(1, 101), p) for p in (0, 50, 99, 100)] == [1, 51, 100, 100]
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == pytest.approx(2.0)
