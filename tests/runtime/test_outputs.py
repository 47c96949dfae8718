"""Outputs are small, and are read as if they were not."""

from __future__ import annotations

import copy
import pickle

from support.sizes import deep_size
from tuili import CompletionOutput, RequestOutput, SamplingParams
from tuili.runtime.api.outputs import RequestMetrics, SharedParams, empty_output
from tuili.types import Finished, PromptTokens, TextDelta


def test_ids_are_lists_to_whoever_reads_them() -> None:
    completion = CompletionOutput(0, "x", [5, 6], finish_reason="stop")
    output = RequestOutput("r", "p", [1, 2, 3], [completion])
    assert output.prompt_token_ids + completion.token_ids == [1, 2, 3, 5, 6]
    assert type(output.prompt_token_ids) is type(completion.token_ids) is list
    assert "token_ids=[5, 6]" in repr(output)
    assert output == RequestOutput("r", "p", [1, 2, 3], [CompletionOutput(0, "x", [5, 6], finish_reason="stop")])
    assert output != RequestOutput("r", "p", [1, 2], [completion])
    for again in (copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert again == output
        assert again.outputs[0].token_ids == [5, 6]
    completion.token_ids = [7]
    assert output.outputs[0].token_ids == [7]


def test_metrics_come_back_as_they_were_put_in() -> None:
    metrics = RequestMetrics(
        num_generation_tokens=7,
        arrival_time=1e9 + 0.1,
        queued_ts=0.1,
        scheduled_ts=0.2,
        first_token_ts=0.3,
        last_token_ts=0.4,
    )
    output = RequestOutput("r", None, [1], [], metrics=metrics)
    assert output.metrics == metrics
    assert RequestOutput("r", None, [1], []).metrics is None


def test_a_copy_goes_its_own_way() -> None:
    output = empty_output("r", 1)
    output.fold(PromptTokens((1, 2), "p")).fold(TextDelta(index=0, text="a", token_ids=(3,)))
    before = output.copy()
    output.fold(TextDelta(index=0, text="b", token_ids=(4,))).fold(Finished(index=0, finish_reason="stop"))
    assert (before.outputs[0].token_ids, before.prompt_token_ids) == ([3], [1, 2])
    assert output.outputs[0].since(1, 1).token_ids == [4]
    assert output.outputs[0].token_ids == [3, 4]


def test_parameters_that_differ_in_their_seed_alone_are_kept_once() -> None:
    share, params = SharedParams(), SamplingParams(temperature=0.5, stop=["a"])
    outputs = [empty_output("r", 1, share(params.with_seed(seed))) for seed in range(3)]
    other = empty_output("r", 1, share(SamplingParams(temperature=0.6, seed=9)))
    assert [output.sampling_params for output in (*outputs, other)] == [
        *(params.with_seed(seed) for seed in range(3)),
        SamplingParams(temperature=0.6, seed=9),
    ]
    assert empty_output("r", 1).sampling_params is None
    assert deep_size(outputs) - deep_size(outputs[:1]) < 2 * 700
    assert pickle.loads(pickle.dumps(outputs[1])).sampling_params == params.with_seed(1)


def test_a_token_takes_four_bytes() -> None:
    small, large = (RequestOutput("r", None, list(range(1000, 1000 + n)), []) for n in (10, 1010))
    assert deep_size(large) - deep_size(small) == 4000
