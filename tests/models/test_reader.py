"""Configurations: typed reads, hostile values, and both file kinds in one vocabulary."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.config_keys import GGUF_HARMLESS, GGUF_KEYS, GGUF_SPECIAL, NEUTRAL
from tuili.models.families import for_gguf, for_hf, read_spec
from tuili.models.gguf_config import gguf_config
from tuili.models.hf_config import hf_config
from tuili.models.reader import ConfigReader
from tuili.models.spec import RopeScaling, RopeSpec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.vocab_size": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
    "llama.attention.layer_norm_rms_epsilon": struct.unpack("<f", struct.pack("<f", 1e-5))[0],
    "llama.rope.dimension_count": 16,
    "tokenizer.ggml.tokens": ["x"] * 128,
}


def from_hf(**changes: Any) -> Any:
    config = hf_config(LLAMA | changes)
    return read_spec(for_hf(config["model_type"]), config)


def from_gguf(tensor_names: tuple[str, ...] = ("output.weight",), **changes: Any) -> Any:
    config = gguf_config(METADATA | changes, tensor_names)
    return read_spec(for_gguf(config["model_type"]), config)


def test_both_kinds_of_file_give_one_spec() -> None:
    assert from_hf() == from_gguf()
    assert from_hf(tie_word_embeddings=True) == from_gguf(tensor_names=())
    assert from_hf().norm_eps == 1e-5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", None, r"config: hidden_size is missing; allowed: an integer in \[1, 2147483647\]"),
        ("hidden_size", 0, "config: hidden_size is 0; allowed: an integer in"),
        ("hidden_size", -5, "config: hidden_size is -5"),
        ("hidden_size", True, "config: hidden_size is True"),
        ("hidden_size", 64.0, "config: hidden_size is 64.0"),
        ("hidden_size", "64", "config: hidden_size is '64'"),
        ("hidden_size", 2**31, "config: hidden_size is 2147483648"),
        ("num_hidden_layers", 5000, r"config: num_hidden_layers is 5000; allowed: an integer in \[1, 4096\]"),
        ("num_key_value_heads", 3, "config: num_key_value_heads is 3; allowed: a divisor of 4 heads"),
        ("rms_norm_eps", float("nan"), "config: rms_norm_eps is nan; allowed: a finite number > 0"),
        ("rms_norm_eps", float("inf"), "config: rms_norm_eps is inf"),
        ("rms_norm_eps", 0.0, "config: rms_norm_eps is 0.0"),
        ("rms_norm_eps", 10**400, "config: rms_norm_eps is 1000"),
        ("rope_theta", -1.0, "config: rope_theta is -1.0"),
        ("tie_word_embeddings", 1, "config: tie_word_embeddings is 1; allowed: true or false"),
        ("hidden_act", 3, "config: hidden_act is 3; allowed: one of gelu"),
        ("partial_rotary_factor", 0.05, "config: partial_rotary_factor is 0.0; allowed: an even part of head_dim = 16"),
        ("partial_rotary_factor", 2.0, "config: partial_rotary_factor is 2.0"),
        ("rope_scaling", 4, "config: rope_scaling is 4; allowed: an object or null"),
        ("rope_scaling", {"type": "linear"}, r"config: rope_scaling\.factor is missing"),
        ("rope_scaling", {"type": "linear", "factor": "4"}, r"config: rope_scaling\.factor is '4'"),
        ("rope_parameters", [1], r"config: rope_parameters is \[1\]; allowed: an object or null"),
        ("rope_parameters", {"full_attention": 3}, "config: rope_parameters is 3; allowed: objects"),
        (
            "rope_parameters",
            {"type": "longrope", "short_factor": [1.0]},
            r"short_factor is \[1.0\]; allowed: a list of 8",
        ),
        ("rope_parameters", {"rope_type": "longrope"}, "longrope rope_scaling needs short_factor, long_factor"),
    ],
)
def test_bad_values_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_hf(**{key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act is 'mish', which is not implemented; allowed: one of gelu"),
        ({"rope_scaling": {"rope_type": "axial"}}, r"rope_scaling\.rope_type is 'axial', which is not implemented"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, r"rope_scaling\.rope_type is 'mrope'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, r"rope_scaling\.mscale is 1.0"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 2]}}, r"rope_scaling\.mrope_section"),
        ({"num_experts": 8}, "num_experts is 8, which is not implemented; allowed: no such key or 0 or 1 for this"),
        ({"residual_multiplier": 0.5}, "residual_multiplier is 0.5"),
        ({"logit_scale": 0.25}, "logit_scale is 0.25"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"vision_config": {"hidden_size": 3}}, "vision_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config is 'gptq'"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8'"),
        (
            {"model_type": "mamba"},
            "model_type 'mamba' is not implemented; allowed: bloom, cohere, cohere2, falcon",
        ),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        from_hf(**changes)


def test_what_changes_nothing_is_read_past() -> None:
    harmless = {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.1,
        "auto_map": {"AutoModel": "modeling.Evil"},
        "initializer_range": 0.02,
        "num_experts": None,
        "pretraining_tp": 2,
        "layer_types": ["full_attention"] * 2,
        "logit_scale": 1.0,
        "rope_interleaved": False,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    assert from_hf(**harmless) == from_hf()


def test_rotary_parameters_of_both_transformers_generations() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = from_hf(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    new = from_hf(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    expected = RopeScaling(
        kind="llama3", factor=8.0, original_max_position=64, low_freq_factor=1.0, high_freq_factor=4.0
    )
    assert old == new
    assert old.layers[0].mixer.rope == RopeSpec(dim=16, theta=5e5, scaling=expected)
    assert from_hf(rope_scaling={"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}).layers[
        0
    ].mixer.rope.scaling == RopeScaling(
        kind="longrope", factor=1.0, original_max_position=512, short_factor=(1.0,) * 8, long_factor=(2.0,) * 8
    )
    partial = from_hf(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    assert partial.layers[0].mixer.rope == RopeSpec(dim=8)


def test_a_length_stated_outside_the_scaling_is_its_original_length() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0}
    spec = from_hf(original_max_position_embeddings=128, rope_scaling=scaling)
    assert spec.layers[0].mixer.rope.scaling.original_max_position == 128
    assert from_hf(rope_scaling=scaling).layers[0].mixer.rope.scaling.original_max_position == 512


def test_gguf_rotary_scaling() -> None:
    linear = from_gguf(**{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert linear == from_hf(rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert linear == from_gguf(**{"llama.rope.scale_linear": 4.0})
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
        "llama.rope.scaling.finetuned": True,
        "llama.rope.scaling.yarn_beta_fast": 16.0,
    }
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0}
    assert from_gguf(**yarn) == from_hf(rope_scaling=scaling)
    assert from_gguf(**{"llama.rope.scaling.type": "none"}) == from_hf()
    with pytest.raises(UnsupportedModelError, match=r"llama\.rope\.scaling\.attn_factor"):
        from_gguf(**yarn, **{"llama.rope.scaling.attn_factor": 0.5})
    with pytest.raises(UnsupportedModelError, match=r"llama\.rope\.scaling\.yarn_ext_factor is 0.5; allowed: 1"):
        from_gguf(**yarn, **{"llama.rope.scaling.yarn_ext_factor": 0.5})


def test_gguf_frequency_divisors() -> None:
    config = gguf_config(METADATA, ["output.weight"]) | {"rope_frequency_divisors": [1.0, 2.0] * 4}
    rope = read_spec(for_gguf("llama"), config).layers[0].mixer.rope  # type: ignore[union-attr]
    assert rope == RopeSpec(dim=16, scaling=RopeScaling(kind="llama3", frequency_divisors=(1.0, 2.0) * 4))
    with pytest.raises(ModelFileError, match=r"rope_frequency_divisors is \[1.0\]; allowed: a list of 8 numbers > 0"):
        read_spec(for_gguf("llama"), config | {"rope_frequency_divisors": [1.0]})
    with pytest.raises(UnsupportedModelError, match=r"rope_scaling .* none beside rope_frequency_divisors"):
        read_spec(for_gguf("llama"), config | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})


def test_gguf_values_stated_once_per_layer() -> None:
    assert from_gguf(**{"llama.attention.head_count_kv": [2, 2]}) == from_gguf()
    with pytest.raises(ModelFileError, match=r"config: num_key_value_heads is \[2, 4\]"):
        from_gguf(**{"llama.attention.head_count_kv": [2, 4]})


def test_gguf_biases_and_vocabulary_come_from_the_file() -> None:
    names = ("output.weight", "blk.0.attn_q.bias", "blk.0.ffn_up.bias")
    assert from_gguf(names) == from_hf(attention_bias=True, mlp_bias=True)
    metadata = {k: v for k, v in METADATA.items() if k != "llama.vocab_size"} | {"tokenizer.ggml.tokens": ["x"] * 50}
    assert gguf_config(metadata, [])["vocab_size"] == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": None}, "general.architecture is None; allowed: the name of an architecture"),
        ({"general.architecture": "rwkv6", "rwkv6.embedding_length": 8, "rwkv6.attention.head_count": 1}, "'rwkv6'"),
        ({"llama.ssm.conv_kernel": 4}, r"GGUF: llama\.ssm\.conv_kernel is 4, which is not implemented"),
        ({"llama.expert_count": 8}, "num_experts is 8"),
        ({"llama.attention.value_length": 8}, r"llama\.attention\.value_length is 8; allowed: the key length 16"),
        ({"llama.attention.causal": False}, r"llama\.attention\.causal is false; allowed: true"),
        ({"llama.attention.head_count": 0}, r"llama\.attention\.head_count is 0"),
        ({"llama.rope.dimension_count": 20}, "partial_rotary_factor is 1.25"),
        ({"llama.rope.dimension_count_swa": 8}, "dimension_count_swa"),
        ({"llama.attention.sliding_window_pattern": "x"}, "sliding_window_pattern is 'x'; allowed: an integer or"),
        ({"llama.rope.scaling.type": "cubic"}, "rope_type is 'cubic'"),
    ],
)
def test_gguf_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_gguf(**changes)


def test_gguf_keys_have_one_meaning() -> None:
    assert not GGUF_KEYS.keys() & GGUF_SPECIAL
    assert not (GGUF_KEYS.keys() | GGUF_SPECIAL) & GGUF_HARMLESS


@settings(deadline=None)
@given(st.floats(2.0**-60, 2.0**60, width=32))
def test_float32_reads_as_the_decimal_it_was_written_as(value: float) -> None:
    decimal = float(f"{value:.6g}")
    single = struct.unpack("<f", struct.pack("<f", decimal))[0]
    assert ConfigReader({"x": single}).number("x") == decimal
    assert ConfigReader({"x": decimal}).number("x") == decimal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), inner),
    max_leaves=6,
)


def reads_or_refuses(read: Callable[..., object], changes: dict[str, Any]) -> bool:
    """Anything but a ModelFileError passes through and fails the test."""
    with contextlib.suppress(ModelFileError):
        read(**changes)
    return True


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*LLAMA, *NEUTRAL, "rope_parameters"]), JSON, max_size=2))
def test_no_configuration_escapes_the_error_tree(changes: dict[str, Any]) -> None:
    assert reads_or_refuses(from_hf, changes)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*METADATA, *(f"llama.{key}" for key in GGUF_SPECIAL)]), JSON, max_size=2))
def test_no_metadata_escapes_the_error_tree(changes: dict[str, Any]) -> None:
    assert reads_or_refuses(from_gguf, changes)
