"""LLM's arguments: names known, ranges checked, GPU-only ones accepted without effect."""

from __future__ import annotations

from typing import Any

import pytest

from tuili import SamplingParams
from tuili.config import SpeculativeConfig
from tuili.errors import InvalidRequestError
from tuili.runtime.api.arguments import LLMArguments


def test_a_vllm_scripts_arguments_are_accepted() -> None:
    arguments = LLMArguments.parse(
        {
            "dtype": "bfloat16",
            "gpu_memory_utilization": 0.9,
            "swap_space": 4,
            "enforce_eager": True,
            "max_model_len": 4096,
            "tensor_parallel_size": 1,
            "trust_remote_code": True,
        }
    )
    assert arguments.load_options().max_model_len == 4096
    assert arguments.load_options().kv_cache_dtype == "auto"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("gpu_memory_utilization", 0.0, r"in \(0, 1\]"),
        ("gpu_memory_utilization", 1.5, r"in \(0, 1\]"),
        ("swap_space", -1, "a number >= 0"),
        ("swap_space", 1e308, "at most 4294967296"),
        ("gpu_layers", -2, "integer >= 0"),
        ("cpu_offload_gb", True, "a number >= 0"),
        ("max_model_len", 0, "integer >= 1"),
        ("max_num_seqs", 2.5, r"integer in \[1, 16384\]"),
        ("num_threads", True, "integer >= 0"),
        ("backend", "gpu", "one of"),
        ("dtype", "int3", "one of"),
        ("kv_cache_dtype", "fp4", "one of"),
        ("tensor_parallel_size", 0, r"integer in \[1, 64\]"),
        ("pipeline_parallel_size", 65, r"integer in \[1, 64\]"),
        ("revision", "main", "not implemented"),
        ("speculative_config", "ngram", "a mapping or None"),
        ("speculative_config", {"draft": "smollm2:135m"}, "'draft' is not implemented; known are method, model"),
        ("speculative_config", {"method": "eagle"}, "method must be 'ngram' or 'draft_model', got 'eagle'"),
        ("speculative_config", {"method": "draft_model"}, "model names the draft model .* got None"),
        ("speculative_config", {"method": "draft_model", "model": ""}, "model names the draft model .* got ''"),
        ("speculative_config", {"method": "ngram", "model": "m"}, "got 'm' with method 'ngram'"),
        (
            "speculative_config",
            {"num_speculative_tokens": 0},
            r"num_speculative_tokens must be an integer in \[1, 64\]",
        ),
        ("speculative_config", {"prompt_lookup_min": 9, "prompt_lookup_max": 8}, r"prompt_lookup_min .* in \[1, 8\]"),
        ("no_such_argument", 1, "unknown argument 'no_such_argument'"),
    ],
)
def test_a_bad_argument_is_named(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed) as caught:
        LLMArguments.parse({name: value})
    assert isinstance(caught.value, InvalidRequestError)
    assert caught.value.param == name
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["awq", "gptq_marlin", "fp8", "bitsandbytes"])
def test_kinds_of_checkpoints_are_no_recipes(name: str) -> None:
    words = f"quantization must be one of q4_0, .*q4_k_m.*, got '{name}': checkpoints of that kind are not read here"
    with pytest.raises(InvalidRequestError, match=words):
        LLMArguments.parse({"quantization": name})


@pytest.mark.parametrize("name", ["q5", "", "Q4_K_XL"])
def test_unknown_recipes_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"got '{name}'$") as caught:
        LLMArguments.parse({"quantization": name})
    assert caught.value.param == "quantization"


def test_recipes_reach_the_loader() -> None:
    for name in ("q4_k_m", "Q8_0", "gguf", None):
        assert LLMArguments.parse({"quantization": name}).load_options().quantization == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 2.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("seed", -2),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("max_tokens", 2**63),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("stop", [""]),
        ("stop", ["x" * 2000]),
        ("stop", [str(i) for i in range(17)]),
        ("stop_token_ids", [-1]),
        ("logprobs", -2),
        ("prompt_logprobs", "many"),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", [1]),
        ("stop", 5),
        ("stop_token_ids", 5),
        ("ignore_eos", 1),
    ],
)
def test_a_bad_sampling_parameter_is_named_with_what_was_found(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert str(caught.value).startswith(name)


def test_greedy_answers_cannot_differ() -> None:
    with pytest.raises(InvalidRequestError, match="n must be 1 when temperature is 0"):
        SamplingParams(n=2, temperature=0)


def test_parameters_have_one_form_inside() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[5, 5, 6], seed=-1, top_k=-1, temperature=1e-6, logprobs=True)
    assert (params.stops, params.stop_token_ids, params.seed, params.top_k) == (("end",), (5, 6), None, 0)
    assert (params.temperature, params.logprobs) == (0.0, 1)
    assert SamplingParams(temperature=0.001).temperature == 0.01
    assert params.with_seed(7).seed == 7
    assert SamplingParams(logit_bias={1: 1000.0, 2: -1000, 3: 5}).logit_bias == {1: 100.0, 2: -100.0, 3: 5}


def test_drafts_are_on_unless_turned_off() -> None:
    assert LLMArguments.parse({}).load_options().speculative == SpeculativeConfig()
    assert LLMArguments.parse({"speculative_config": None}).load_options().speculative is None
    given = {"method": "ngram", "num_speculative_tokens": 4}
    assert LLMArguments.parse({"speculative_config": given}).load_options().speculative == SpeculativeConfig(
        num_speculative_tokens=4
    )


def test_a_model_alone_says_the_method_of_drafting() -> None:
    for given in ({"model": "m"}, {"model": "m", "method": "draft_model"}):
        found = LLMArguments.parse({"speculative_config": given}).load_options().speculative
        assert found == SpeculativeConfig(method="draft_model", model="m")
