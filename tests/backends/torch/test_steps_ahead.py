"""The engine on torch, with graphs and steps that are built while another runs, against neither: the same tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.answers import Answers, ask
from support.random_models import decoder, layer, random_weights
from tuili.backend import CARRIED_STATE, BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import repeat
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.types import TokenRequest

CONTEXT = 64


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny products gain nothing from two, and wait for both on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def backend() -> TorchBackend:
    spec = decoder(layer(), layer(sliding_window=20), vocab_size=23)
    options = BackendOptions(max_model_len=CONTEXT, device="cpu", deterministic=True)
    made = load_backend("torch", spec, random_weights(spec), options)
    assert isinstance(made, TorchBackend)
    return made


def answered(
    requests: list[TokenRequest], abort_after: int, *, blocks: int, is_ahead: bool
) -> tuple[Answers, Engine, set[str]]:
    """The first request is aborted after so many steps, if it is there still."""
    model = backend()
    model.is_asynchronous = is_ahead
    model.graphs = model.captured_by(repeat) if is_ahead else None
    per_block = sum(group.block_bytes for group in model.cache_groups(16))
    config = EngineConfig(
        max_model_len=CONTEXT,
        max_num_seqs=4,
        max_num_batched_tokens=24,
        block_size=16,
        kv_cache_memory_bytes=blocks * per_block,
        kv_cache_dtype="auto",
    )
    engine, answers = Engine(model, config), Answers()
    for request in requests:
        engine.add(request, answers)
    num_steps = 0
    while engine.has_work():
        engine.step()
        engine.check()
        num_steps += 1
        if num_steps == abort_after:
            engine.abort("r0")
    aborted = {r.request_id for r in requests if answers.reason(r.request_id) == "abort"}
    return answers, engine, aborted


REQUESTS = st.builds(
    lambda start, length, seed, **sampling: ([(start + 5 * i) % 23 for i in range(length)], seed, sampling),
    st.integers(0, 3),
    st.integers(1, 30),
    st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.9]),
    max_tokens=st.integers(1, 10),
    stop_token_ids=st.lists(st.integers(0, 22), max_size=3),
    logprobs=st.sampled_from([None, 2]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.4]),
    repeat_last_n=st.sampled_from([-1, 1, 5]),
    dry_multiplier=st.sampled_from([0.0] * 7 + [0.8]),
    mirostat=st.sampled_from([0, 0, 1, 2]),
    adaptive_target=st.sampled_from([-1.0, -1.0, 0.4]),
)


@pytest.mark.no_cover  # the same lines many times over
@settings(max_examples=7, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    works=st.lists(REQUESTS, min_size=2, max_size=6),
    abort_after=st.integers(1, 20),
    blocks=st.sampled_from([5, 7, 40]),
)
def test_no_token_is_another(works: list[Any], abort_after: int, blocks: int) -> None:
    requests = [ask(f"r{i}", prompt, seed=seed, **sampling) for i, (prompt, seed, sampling) in enumerate(works)]
    expected, _, early = answered(requests, abort_after, blocks=blocks, is_ahead=False)
    found, _, late = answered(requests, abort_after, blocks=blocks, is_ahead=True)
    for request in requests:
        name = request.request_id
        ours, theirs = found.tokens(name), expected.tokens(name)
        if name in early | late:  # where it was by then is a matter of steps
            assert ours == theirs[: len(ours)] or theirs == ours[: len(theirs)]
        else:
            assert ours == theirs
            assert found.reason(name) == expected.reason(name)
            said = [[d.logprobs for d in answers.deltas[name, 0]] for answers in (found, expected)]
            assert said[0] == said[1]


@pytest.mark.parametrize(
    "sampling", [{"mirostat": 1}, {"mirostat": 2, "repetition_penalty": 1.3}, {"adaptive_target": 0.4}]
)
def test_samplers_that_carry_a_number_go_ahead_with_it(sampling: dict[str, Any]) -> None:
    """It is that of the step before, whose result nobody has seen: the same bits as in turn, in graphs and without."""
    requests = [ask(f"r{i}", [i, 5, 9], seed=i, max_tokens=25, temperature=0.9, **sampling) for i in range(3)]
    requests.append(ask("r3", range(20), max_tokens=25))  # whose prompt comes in parts
    expected, _, _ = answered(requests, 0, blocks=40, is_ahead=False)
    begun: list[int] = []
    execute = backend().execute

    def watched(batch: Any) -> Any:
        begun.append(int((batch.sampling.sampler_state == CARRIED_STATE).sum()))
        return execute(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend(), "execute", watched)
        found, _, _ = answered(requests, 0, blocks=40, is_ahead=True)
    assert max(begun) == 3
    assert sum(count == 3 for count in begun) > 15
    for request in requests:
        name = request.request_id
        assert found.tokens(name) == expected.tokens(name)
        said = [[d.sampler_state for d in answers.deltas[name, 0]] for answers in (found, expected)]
        assert said[0] == said[1]


def test_room_that_runs_out_changes_nothing_either() -> None:
    requests = [ask(f"r{i}", range(i, i + 15), max_tokens=20) for i in range(4)]
    expected, _, _ = answered(requests, 0, blocks=40, is_ahead=False)
    found, engine, _ = answered(requests, 0, blocks=5, is_ahead=True)
    assert engine.stats().num_preemptions
    graphs = backend().graphs
    assert graphs is not None
    assert len(graphs)
    for request in requests:
        assert found.tokens(request.request_id) == expected.tokens(request.request_id)
