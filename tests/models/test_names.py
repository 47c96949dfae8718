"""Checkpoint names, shapes and features: small tables, checked by hand and against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tuili.errors import UnsupportedModelError
from tuili.models.features import unsupported_features
from tuili.models.names import GGUF, HF, HF_SANDWICH, NameTable, is_ignored, leaf, rename
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import (
    AttentionSpec,
    EncoderSpec,
    LayerSpec,
    MlaSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    RelativeBiasSpec,
    RopeSpec,
)

ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.5, rope=RopeSpec(dim=8))
LAYER = LayerSpec(mixer=ATTENTION, mlp=MlpSpec(intermediate_size=48))
MODEL = ModelSpec(family="test", vocab_size=97, hidden_size=32, max_position=128, layers=(LAYER,))


@pytest.mark.parametrize(
    ("name", "table", "canonical"),
    [
        ("model.embed_tokens.weight", HF, "embed_tokens.weight"),
        ("model.layers.11.self_attn.q_proj.bias", HF, "layers.11.q_proj.bias"),
        ("model.layers.0.mlp.down_proj.weight", HF, "layers.0.down_proj.weight"),
        ("model.layers.3.post_attention_layernorm.weight", HF, "layers.3.mlp_norm.weight"),
        ("model.layers.3.post_attention_layernorm.weight", HF | HF_SANDWICH, "layers.3.attn_post_norm.weight"),
        ("model.layers.3.self_attn.k_norm.weight", HF, "layers.3.k_norm.weight"),
        ("lm_head.weight", HF, "lm_head.weight"),
        ("blk.7.attn_output.weight", GGUF, "layers.7.o_proj.weight"),
        ("blk.7.attn_q_norm.weight", GGUF, "layers.7.q_norm.weight"),
        ("output_norm.weight", GGUF, "norm.weight"),
        ("output.weight", GGUF, "lm_head.weight"),
        ("vision_tower.embeddings.weight", HF, None),
        ("blk.x.attn_q.weight", GGUF, None),
        ("blk.1.2.attn_q.weight", GGUF, None),
    ],
)
def test_rename(name: str, table: NameTable, canonical: str | None) -> None:
    assert rename(name, table) == canonical


def test_the_longest_prefix_wins() -> None:
    assert rename("a.b.weight", {"a.": "x.", "a.b.": "y."}) == "y.weight"
    assert rename("a.b.weight", {"a.b.": "y.", "a.": "x."}) == "y.weight"


def test_affixes_and_leaves() -> None:
    assert is_ignored("model.layers.0.self_attn.rotary_emb.inv_freq", (".rotary_emb.inv_freq",))
    assert is_ignored("model.mtp_layers.0.weight", ("model.mtp_layers.",))
    assert not is_ignored("model.norm.weight", ("model.mtp_layers.", ".inv_freq"))
    assert (leaf("layers.3.q_proj.weight"), leaf("norm.weight")) == ("q_proj", "norm")


def test_shapes_of_a_plain_decoder() -> None:
    assert tensor_shapes(MODEL) == {
        "embed_tokens.weight": (97, 32),
        "layers.0.attn_norm.weight": (32,),
        "layers.0.mlp_norm.weight": (32,),
        "layers.0.q_proj.weight": (32, 32),
        "layers.0.k_proj.weight": (16, 32),
        "layers.0.v_proj.weight": (16, 32),
        "layers.0.o_proj.weight": (32, 32),
        "layers.0.gate_proj.weight": (48, 32),
        "layers.0.up_proj.weight": (48, 32),
        "layers.0.down_proj.weight": (32, 48),
        "norm.weight": (32,),
        "lm_head.weight": (97, 32),
    }
    assert "lm_head.weight" not in tensor_shapes(replace(MODEL, tie_word_embeddings=True))


def test_shapes_of_experts_are_stacked() -> None:
    expert = MlpSpec(intermediate_size=24)
    moe = MoeSpec(num_experts=6, num_experts_per_tok=2, expert=expert, shared_expert=MlpSpec(intermediate_size=40))
    shapes = tensor_shapes(replace(MODEL, layers=(replace(LAYER, mlp=moe),)))
    assert shapes["layers.0.router.weight"] == (6, 32)
    assert shapes["layers.0.experts.down_proj.weight"] == (6, 32, 24)
    assert shapes["layers.0.shared_expert.gate_proj.weight"] == (40, 32)
    assert "layers.0.gate_proj.weight" not in shapes


def test_shapes_that_are_not_defined_are_refused_by_name() -> None:
    mla = MlaSpec(
        num_heads=4,
        q_lora_rank=None,
        kv_lora_rank=16,
        nope_head_dim=8,
        rope_head_dim=4,
        value_head_dim=8,
        scale=1.0,
        rope=RopeSpec(dim=4),
    )
    biased = replace(ATTENTION, relative_bias=RelativeBiasSpec(num_buckets=8, max_distance=16))
    for layer, name in (
        (replace(LAYER, mixer=mla), "MlaSpec"),
        (replace(LAYER, cross_attention=ATTENTION), "cross_attention"),
        (replace(LAYER, mixer=biased), "relative_bias"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"test: no canonical weights are defined for {name}"):
            tensor_shapes(replace(MODEL, layers=(layer,)))
    with pytest.raises(UnsupportedModelError, match="encoder"):
        tensor_shapes(replace(MODEL, encoder=EncoderSpec(layers=(LAYER,))))


def test_features_are_named_by_spec_field() -> None:
    assert unsupported_features(MODEL) == ()
    attention = replace(ATTENTION, qk_norm="head", q_bias=True, sinks=True, sliding_window=8)
    layer = replace(LAYER, mixer=attention, norms="sandwich", mlp=MlpSpec(intermediate_size=4, gated=False))
    spec = replace(MODEL, layers=(LAYER, layer), logit_softcap=3.0, norm="layer", position="learned")
    everything = (
        "gated=False",
        "logit_softcap",
        "norm=layer",
        "norms=sandwich",
        "position=learned",
        "q_bias",
        "qk_norm=head",
        "sinks",
        "sliding_window",
    )
    assert unsupported_features(spec) == everything
    assert unsupported_features(spec, frozenset(everything) - {"sinks"}) == ("sinks",)
