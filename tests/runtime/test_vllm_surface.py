"""What a vLLM script expects beyond single answers: output kinds, metrics, engine objects, arguments, refusals."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tuili
from tuili import (
    LLM,
    AsyncEngineArgs,
    AsyncLLMEngine,
    EngineArgs,
    LLMEngine,
    RequestOutputKind,
    SamplingParams,
    TokensPrompt,
)
from tuili.errors import EngineUnavailableError, InvalidRequestError
from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.api.outputs import OutputStream, RequestOutput
from tuili.runtime.api.vllm_arguments import IGNORED, REFUSED
from tuili.runtime.front.sampling_defaults import SamplingDefaults
from tuili.runtime.metrics import Counter, Gauge, Histogram, RequestMeter
from tuili.types import Done, Event, Finished, PromptTokens, TextDelta, Timings, Usage

SMALL = {"max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}
GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPTS = ["The capital of France is", "Water boils at", "One, two, three,"]


def _stream(kind: RequestOutputKind) -> list[RequestOutput]:
    """A request of two answers whose events come in three steps."""
    usage = Usage(num_prompt_tokens=2, num_cached_tokens=1, num_output_tokens=4)
    timings = Timings(time_to_first_token_s=0.5, decode_s=1.5, arrival_s=10.0, queue_s=0.25)
    steps: list[list[Event]] = [
        [
            PromptTokens((1, 2), "ab"),
            TextDelta(index=0, text="c", token_ids=(3,)),
            TextDelta(index=1, text="", token_ids=(4,)),
        ],
        [TextDelta(index=1, text="de", token_ids=(5,)), Finished(index=1, finish_reason="stop")],
        [
            TextDelta(index=0, text="f", token_ids=(6,)),
            Finished(index=0, finish_reason="length"),
            Done(usage=usage, timings=timings),
        ],
    ]
    stream = OutputStream("r", 2, kind)
    return [output for events in steps if (output := stream.push(events)) is not None]


def _told(outputs: list[RequestOutput]) -> list[list[tuple[int, str, list[int]]]]:
    return [[(c.index, c.text, c.token_ids) for c in output.outputs] for output in outputs]


def test_cumulative_outputs_hold_all_so_far_and_do_not_change_later() -> None:
    outputs = _stream(RequestOutputKind.CUMULATIVE)
    assert _told(outputs) == [
        [(0, "c", [3]), (1, "", [4])],
        [(0, "c", [3]), (1, "de", [4, 5])],
        [(0, "cf", [3, 6]), (1, "de", [4, 5])],
    ]
    assert [output.finished for output in outputs] == [False, False, True]


def test_deltas_hold_only_what_is_new_of_answers_that_changed() -> None:
    outputs = _stream(RequestOutputKind.DELTA)
    assert _told(outputs) == [[(0, "c", [3]), (1, "", [4])], [(1, "de", [5])], [(0, "f", [6])]]
    assert [c.finish_reason for output in outputs for c in output.outputs] == [None, None, "stop", "length"]


def test_a_final_output_comes_once_with_the_times() -> None:
    (output,) = _stream(RequestOutputKind.FINAL_ONLY)
    assert _told([output]) == [[(0, "cf", [3, 6]), (1, "de", [4, 5])]]
    metrics = output.metrics
    assert metrics is not None
    assert (metrics.num_generation_tokens, metrics.queued_ts, metrics.scheduled_ts) == (4, 10.0, 10.25)
    assert (metrics.first_token_ts, metrics.last_token_ts) == (10.5, 12.0)
    assert (metrics.first_token_latency, metrics.time_in_queue) == (0.5, 0.25)
    assert metrics.first_token_time - metrics.arrival_time == pytest.approx(0.5)
    assert metrics.first_scheduled_time - metrics.arrival_time == pytest.approx(0.25)
    assert metrics.finished_time - metrics.arrival_time == pytest.approx(2.0)


def test_an_output_kind_is_checked() -> None:
    with pytest.raises(InvalidRequestError, match="output_kind must be a RequestOutputKind, got 'delta'"):
        SamplingParams(output_kind="delta")  # type: ignore[arg-type]


def test_a_histogram_counts_up_to_its_bounds(llm: LLM) -> None:
    meter = RequestMeter()
    usage = Usage(num_prompt_tokens=3, num_cached_tokens=0, num_output_tokens=3)
    done = Done(usage=usage, timings=Timings(time_to_first_token_s=0.25, decode_s=0.5, queue_s=0.05))
    meter.add(done, ["stop"], [0.25, 1e9], SamplingParams(max_tokens=50), 2)
    metrics = {m.name: m for m in meter.snapshot(llm._pipeline.loop.stats(), "m")}
    gaps = metrics["vllm:inter_token_latency_seconds"]
    assert isinstance(gaps, Histogram)
    assert (gaps.count, gaps.sum) == (2, 1e9 + 0.25)
    assert (gaps.buckets["0.1"], gaps.buckets["0.25"], gaps.buckets["500"], gaps.buckets["+Inf"]) == (0, 1, 1, 2)
    prefill = metrics["vllm:request_prefill_time_seconds"]
    assert isinstance(prefill, Histogram)
    assert prefill.sum == pytest.approx(0.2)
    limit = metrics["vllm:request_params_max_tokens"]
    assert isinstance(limit, Histogram)
    assert (limit.sum, limit.buckets["20"], limit.buckets["50"]) == (50, 0, 1)
    longest = metrics["vllm:request_max_num_generation_tokens"]
    assert isinstance(longest, Histogram)
    assert (longest.sum, longest.count) == (2, 1)


def _values(llm: LLM) -> dict[str, float]:
    return {
        m.name.removeprefix("vllm:") + m.labels.get("finished_reason", ""): m.value
        for m in llm.get_metrics()
        if isinstance(m, Counter | Gauge)
    }


def test_parameters_may_be_changed_as_scripts_do(llm: LLM) -> None:
    params = llm.get_default_sampling_params()
    params.max_tokens = 3  # type: ignore[misc]
    params.temperature = 0  # type: ignore[misc]
    params.stop = "nowhere"  # type: ignore[misc]
    assert (params.max_tokens, params.temperature, params.stop) == (3, 0.0, ("nowhere",))
    ids = llm.enqueue(PROMPTS[0], params.with_seed(1))
    assert len(ids) == 1
    assert len(llm.wait_for_completion(use_tqdm=False)[0].outputs[0].token_ids) == 3
    with pytest.raises(InvalidRequestError, match="top_p must be"):
        params.top_p = 0.0  # type: ignore[misc]
    assert params.top_p > 0
    with pytest.raises(AttributeError, match="no field 'topp'"):
        params.topp = 1  # type: ignore[attr-defined]


def test_a_queued_request_keeps_the_parameters_it_was_given(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, seed=1)
    llm.enqueue(PROMPTS[0], params)
    params.max_tokens = 5  # type: ignore[misc]
    assert len(llm.wait_for_completion(use_tqdm=False)[0].outputs[0].token_ids) == 2


def test_control_tokens_by_hand(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    (expected,) = llm.chat(messages, GREEDY, False)
    assert expected.prompt is not None
    by_hand = expected.prompt.encode().decode()  # forgets what the template wrote
    options = {"split_special_tokens": False}
    (output,) = llm.generate(by_hand, GREEDY, use_tqdm=False, tokenization_kwargs=options)
    assert (output.prompt, output.prompt_token_ids) == (by_hand, expected.prompt_token_ids)
    assert output.outputs[0].text == expected.outputs[0].text
    assert not caplog.records
    for _ in range(2):
        (as_text,) = llm.generate(by_hand, GREEDY, use_tqdm=False)
    assert len(as_text.prompt_token_ids) > len(expected.prompt_token_ids)
    assert [("<|im_start|>" in record.message) for record in caplog.records] == [True]
    with pytest.raises(InvalidRequestError, match="tokenization_kwargs may hold add_special_tokens and"):
        llm.generate("x", GREEDY, use_tqdm=False, tokenization_kwargs={"padding": True})


def test_the_text_beside_token_ids_is_reported(llm: LLM) -> None:
    prompt = TokensPrompt(prompt_token_ids=[1, 2, 3], prompt="as I call it")
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].prompt == "as I call it"


def test_metrics_count_requests(llm: LLM) -> None:
    before = _values(llm)
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    after = _values(llm)
    assert after["generation_tokens"] - before["generation_tokens"] == 24
    num_prompt_tokens = sum(len(o.prompt_token_ids) for o in outputs)
    assert after["prompt_tokens"] - before["prompt_tokens"] == num_prompt_tokens
    assert after["request_successlength"] - before.get("request_successlength", 0) == 3
    assert after["num_requests_running"] == after["num_requests_waiting"] == 0


def test_a_forgotten_prefix_is_computed_again(llm: LLM) -> None:
    prompt = "A story to be forgotten. " * 40
    llm.generate(prompt, GREEDY, use_tqdm=False)
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens > 0
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_what_is_enqueued_is_answered_in_order(llm: LLM) -> None:
    ids = [*llm.enqueue(PROMPTS[0], GREEDY), *llm.enqueue(PROMPTS[1:], GREEDY)]
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == ids
    assert [output.prompt for output in outputs] == PROMPTS
    assert llm.wait_for_completion(use_tqdm=False) == []


def test_a_bar_of_ones_own(llm: LLM) -> None:
    made: list[dict[str, Any]] = []

    def bar(**arguments: Any) -> Any:
        made.append(arguments)
        from tqdm import tqdm

        return tqdm(**{**arguments, "disable": True})

    llm.generate(PROMPTS[:2], GREEDY, use_tqdm=bar)
    assert [arguments["total"] for arguments in made] == [2]


def test_chat_shows_tools_to_the_template(llm: LLM) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    template = "{{ tools[0].function.name }}: {{ messages[0].content }}"
    messages = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(messages, GREEDY, False, chat_template=template, tools=tools)
    assert output.prompt == "look_up: hi"
    with pytest.raises(InvalidRequestError, match="'auto' or 'string', got 'openai'"):
        llm.chat(messages, GREEDY, False, chat_template_content_format="openai")


@pytest.mark.parametrize("name", ["embed", "encode", "score", "classify", "sleep", "collective_rpc"])
def test_what_is_not_implemented_says_so(llm: LLM, name: str) -> None:
    with pytest.raises(AttributeError, match=f"LLM.{name} is not implemented: "):
        getattr(llm, name)
    assert not hasattr(llm, name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate("x", lora_request=object()), "lora_request is not implemented"),
        (
            lambda m: m.generate({"prompt": "x", "multi_modal_data": {"image": 1}}),
            "multi_modal_data is not implemented",
        ),
        (lambda m: m.generate({"prompt_embeds": [1.0]}), "prompt_embeds is not implemented"),
        (lambda m: m.generate(["x", "y"], priority=[1]), "priority needs one entry for each of 2 prompts, got 1"),
        (lambda m: m.generate(5), "prompts must be a string"),
    ],
)
def test_a_refused_argument_is_named(llm: LLM, call: Callable[[LLM], object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call(llm)


def test_an_llm_engine_takes_requests_while_it_runs(smollm2_gguf: Path, llm: LLM) -> None:
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(smollm2_gguf), **SMALL))
    waiting = list(enumerate(PROMPTS))
    texts: dict[str, str] = {}
    while waiting or engine.has_unfinished_requests():
        if waiting:
            index, prompt = waiting.pop(0)
            engine.add_request(str(index), prompt, GREEDY)
        for output in engine.step():
            assert output.outputs[0].text.startswith(texts.get(output.request_id, ""))
            texts[output.request_id] = output.outputs[0].text
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    assert [texts[str(i)] for i in range(3)] == expected
    assert engine.step() == []
    engine.add_request("long", PROMPTS[0], SamplingParams(max_tokens=None, ignore_eos=True))
    with pytest.raises(InvalidRequestError, match="'long' is already in use"):
        engine.add_request("long", PROMPTS[0], GREEDY)
    engine.abort_request("long")
    assert engine.get_num_unfinished_requests() == 1
    endings: list[object] = []
    while engine.has_unfinished_requests():
        endings += [o.outputs[0].finish_reason for o in engine.step()]
    assert endings[-1] == "abort"
    engine.shutdown()


async def test_an_async_engine_yields_what_the_output_kind_asks_for(smollm2_gguf: Path, llm: LLM) -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=str(smollm2_gguf), **SMALL))
    expected = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0]

    async def ask(kind: RequestOutputKind) -> list[RequestOutput]:
        params = SamplingParams(temperature=0, max_tokens=8, output_kind=kind)
        return [output async for output in engine.generate(PROMPTS[0], params)]

    growing, deltas, final = await asyncio.gather(*map(ask, RequestOutputKind))
    assert growing[-1].outputs[0] == final[0].outputs[0] == expected
    assert len({id(output) for output in growing}) == len(growing) > 1
    assert "".join(output.outputs[0].text for output in deltas) == expected.text
    assert [i for output in deltas for i in output.outputs[0].token_ids] == expected.token_ids
    assert len(final) == 1
    assert await engine.reset_prefix_cache()
    assert engine.is_running
    await engine.check_health()
    engine.shutdown()
    assert engine.errored
    with pytest.raises(EngineUnavailableError):
        await engine.check_health()


def test_engine_arguments_load_with_vars_and_come_from_a_command_line() -> None:
    given = EngineArgs(model="org/name", max_model_len=64, enforce_eager=True)
    assert vars(given) == {"model": "org/name", "max_model_len": 64, "enforce_eager": True}
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    parser.add_argument("--mine", default=1)
    words = ["--model", "org/name", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.5", "--enforce-eager"]
    parsed = AsyncEngineArgs.from_cli_args(parser.parse_args(words))
    assert (parsed.model, parsed.max_num_seqs, parsed.gpu_memory_utilization) == ("org/name", 4, 0.5)  # type: ignore[attr-defined]
    assert not hasattr(parsed, "mine")
    assert LLMArguments.parse({k: v for k, v in vars(parsed).items() if k != "model"}).max_num_seqs == 4
    with pytest.raises(InvalidRequestError, match="unknown argument 'max_seqs'"):
        EngineArgs(max_seqs=1)


def test_an_argument_without_effect_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    LLMArguments.parse({"max_seq_len_to_capture": 9, "enforce_eager": False, "disable_log_stats": False})
    (record,) = caplog.records
    assert "max_seq_len_to_capture (" in record.message
    assert "enforce_eager" not in record.message
    assert "disable_log_stats" not in record.message


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_defaults_of_arguments_without_effect_are_allowed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert LLMArguments.parse({name: IGNORED[name].default}) == LLMArguments()
    assert not caplog.records


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_argument_may_ask_for_nothing(name: str) -> None:
    for value in REFUSED[name][0]:
        assert LLMArguments.parse({name: value}) == LLMArguments()
    with pytest.raises(InvalidRequestError, match="is not implemented: ") as caught:
        LLMArguments.parse({name: "something"})
    assert caught.value.param == name


def test_sampling_defaults_can_be_the_librarys_or_changed() -> None:
    model = {"temperature": 0.2, "top_p": 0.9}
    assert dict(LLMArguments.parse({}).default_sampling(model)) == model
    assert dict(LLMArguments.parse({"generation_config": "vllm"}).default_sampling(model)) == {}
    changed = LLMArguments.parse({"override_generation_config": {"top_p": 0.5, "max_new_tokens": 9}})
    assert dict(changed.default_sampling(model)) == {"temperature": 0.2, "top_p": 0.5, "max_tokens": 9}
    layers = SamplingDefaults(
        (("catalogue", {"top_p": 0.5, "temperature": 0.9}), ("generation_config", {"top_p": 0.8}))
    )
    found = changed.default_sampling(layers)
    assert [found.layer_of(name) for name in ("top_p", "temperature", "min_p")] == [
        *("override_generation_config", "catalogue", "library")
    ]


def test_vllm_names_are_exported() -> None:
    names = "LLM SamplingParams RequestOutput CompletionOutput TextPrompt TokensPrompt LLMEngine EngineArgs"
    for name in [*names.split(), "AsyncLLMEngine", "AsyncEngineArgs"]:
        assert hasattr(tuili, name)
