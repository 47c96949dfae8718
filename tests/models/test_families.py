"""Specs of published configurations, and what discovery finds."""

from __future__ import annotations

from typing import Any

import pytest

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.families import families, for_gguf, for_hf, read_spec
from tuili.models.gguf_config import gguf_config
from tuili.models.hf_config import hf_config
from tuili.models.names import table_for
from tuili.models.spec import AttentionSpec, ModelSpec, RopeScaling, RopeSpec
from tuili.weights.transforms import TRANSFORMS, TRANSPOSE

LLAMA_3_2_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_3_1B = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}


def from_hf(config: dict[str, Any], **changes: Any) -> ModelSpec:
    flat = hf_config(config | changes)
    return read_spec(for_hf(flat["model_type"]), flat)


def mixers(spec: ModelSpec) -> list[AttentionSpec]:
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]


def windows(spec: ModelSpec) -> list[int | None]:
    return [a.sliding_window for a in mixers(spec)]


def test_every_family_is_found_and_complete() -> None:
    assert {"gemma3", "llama", "opt", "stablelm"} <= set(families())
    for family in families().values():
        for names in (family.HF_NAMES, family.GGUF_NAMES):
            table = table_for(names, from_hf(LLAMA_3_2_1B))
            assert all(prefix.endswith(".") for prefix in table)
        assert {*family.HF_TRANSFORMS.values(), *family.GGUF_TRANSFORMS.values()} <= {TRANSPOSE, *TRANSFORMS}
        assert isinstance(family.HF_IGNORED, tuple)
        assert isinstance(family.GGUF_IGNORED, tuple)


def test_unknown_types_are_refused_with_what_there_is() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'mamba' is not implemented; allowed: bloom, .*, qwen2, qwen3, smollm3, stablelm$"
    ):
        for_gguf("mamba")
    with pytest.raises(ModelFileError, match="model_type is 3; allowed: one of bloom, cohere, cohere2, falcon"):
        for_hf(3)  # type: ignore[arg-type]


def test_llama_3_2() -> None:
    spec = from_hf(LLAMA_3_2_1B)
    scaling = RopeScaling(
        kind="llama3", factor=32.0, original_max_position=8192, low_freq_factor=1.0, high_freq_factor=4.0
    )
    assert (spec.num_layers, spec.tie_word_embeddings, spec.norm_eps) == (16, True, 1e-5)
    assert set(mixers(spec)) == {
        AttentionSpec(
            num_heads=32,
            num_kv_heads=8,
            head_dim=64,
            scale=0.125,
            rope=RopeSpec(dim=64, theta=500000.0, scaling=scaling),
        )
    }


def test_mistral_windows() -> None:
    config = {key: value for key, value in LLAMA_3_2_1B.items() if key != "rope_scaling"} | {"model_type": "mistral"}
    assert set(windows(from_hf(config, sliding_window=None))) == {None}
    assert set(windows(from_hf(config, sliding_window=1024))) == {1024}
    assert set(windows(from_hf(config))) == {4096}  # what a config that does not say means


def test_qwen2_windows_and_biases() -> None:
    spec = from_hf(QWEN)
    assert windows(spec) == [None] * 24
    first = mixers(spec)[0]
    assert (first.q_bias, first.k_bias, first.v_bias, first.out_bias, first.head_dim) == (True, True, True, False, 64)
    assert windows(from_hf(QWEN, use_sliding_window=True)) == [None] * 21 + [32768] * 3
    assert windows(from_hf(QWEN, use_sliding_window=True, max_window_layers=0)) == [32768] * 24
    assert windows(from_hf(QWEN, use_sliding_window=True, max_window_layers=99)) == [None] * 24
    kinds = ["sliding_attention", "full_attention"] * 12
    assert windows(from_hf(QWEN, use_sliding_window=True, layer_types=kinds)) == [32768, None] * 12
    with pytest.raises(
        ModelFileError, match="layer_types has sliding_attention; allowed: only with use_sliding_window"
    ):
        from_hf(QWEN, layer_types=kinds)
    with pytest.raises(ModelFileError, match=r"layer_types is .*; allowed: a list of 24 layer types"):
        from_hf(QWEN, layer_types=kinds[:3])


def test_mimo_is_a_qwen2() -> None:
    assert from_hf(QWEN, model_type="mimo", num_nextn_predict_layers=1, attention_bias=True) == from_hf(QWEN)


def test_qwen3_has_normed_heads_of_128() -> None:
    first = mixers(from_hf(QWEN, model_type="qwen3"))[0]
    assert (first.qk_norm, first.head_dim, first.q_bias) == ("head", 128, False)


def test_gemma3() -> None:
    spec = from_hf(GEMMA_3_1B)
    assert windows(spec) == [None if (i + 1) % 6 == 0 else 512 for i in range(26)]
    local, full = mixers(spec)[0], mixers(spec)[5]
    assert (local.rope, full.rope) == (RopeSpec(dim=256, theta=10_000.0), RopeSpec(dim=256, theta=1_000_000.0))
    assert (full.scale, full.qk_norm, spec.layers[0].norms) == (1 / 16, "head", "sandwich")
    assert (spec.embedding_scale, spec.tie_word_embeddings) == (1152**0.5, True)
    capped = from_hf(GEMMA_3_1B, final_logit_softcapping=30.0, attn_logit_softcapping=50.0)
    assert (capped.logit_softcap, mixers(capped)[0].logit_softcap) == (30.0, 50.0)


def test_zero_is_off_where_it_is_neutral() -> None:
    gemma2 = GEMMA_3_1B | {"model_type": "gemma2", "rope_local_base_freq": None, "sliding_window_pattern": None}
    for family in (GEMMA_3_1B, gemma2):
        uncapped = from_hf(family, final_logit_softcapping=0, attn_logit_softcapping=0.0)
        assert (uncapped.logit_softcap, mixers(uncapped)[0].logit_softcap) == (None, None)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0}
    ministral = from_hf(LLAMA_3_2_1B, model_type="ministral3", rope_scaling=yarn, sliding_window=0)
    assert (mixers(ministral)[0].query_scaling, set(windows(ministral))) == (None, {None})
    with pytest.raises(ModelFileError, match="config: final_logit_softcapping is False; allowed: a finite number > 0"):
        from_hf(GEMMA_3_1B, final_logit_softcapping=False)


def test_gemma3_stretches_global_layers_only() -> None:
    stretched = from_hf(GEMMA_3_1B, rope_scaling={"rope_type": "linear", "factor": 8.0})
    local, full = mixers(stretched)[0], mixers(stretched)[5]
    assert full.rope == RopeSpec(dim=256, theta=1_000_000.0, scaling=RopeScaling(kind="linear", factor=8.0))
    assert local.rope == RopeSpec(dim=256, theta=10_000.0)
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    new = {k: v for k, v in GEMMA_3_1B.items() if not k.startswith("rope") and k != "sliding_window_pattern"}
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(26)]
    assert from_hf(new, rope_parameters=nested, layer_types=kinds) == stretched


@pytest.mark.parametrize(("layers", "hidden", "heads", "scalar"), [(18, 640, 4, 256), (62, 5376, 32, 168)])
def test_gemma3_in_gguf_leaves_the_attention_scale_to_its_size(
    layers: int, hidden: int, heads: int, scalar: int
) -> None:
    """llama.cpp knows the 27B model, which alone scales by hidden_size / num_heads, by its number of layers."""
    metadata = {
        "general.architecture": "gemma3",
        "gemma3.context_length": 32768,
        "gemma3.embedding_length": hidden,
        "gemma3.block_count": layers,
        "gemma3.feed_forward_length": 2048,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.sliding_window": 512,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.rope.freq_base": 1000000.0,
        "tokenizer.ggml.tokens": ["x"] * 32,
    }
    spec = read_spec(for_gguf("gemma3"), gguf_config(metadata, []))
    assert mixers(spec)[0].scale == pytest.approx(scalar**-0.5)
    assert windows(spec)[:6] == [512] * 5 + [None]
    pattern = {"gemma3.attention.sliding_window_pattern": [True, False] * (layers // 2)}
    assert windows(read_spec(for_gguf("gemma3"), gguf_config(metadata | pattern, [])))[:4] == [512, None] * 2
    pattern = {"gemma3.attention.sliding_window_pattern": 2}
    assert windows(read_spec(for_gguf("gemma3"), gguf_config(metadata | pattern, [])))[:4] == [512, None] * 2
