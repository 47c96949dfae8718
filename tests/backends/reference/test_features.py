"""Spec members that no family of ours uses yet, against transformers models that do, mapped by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from support import tiny_models
from support.batches import Driver
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.reference.layers import ACTIVATIONS, attend
from tuili.models.names import HF, HF_SANDWICH, rename
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec

TEXT = np.random.default_rng(8).integers(0, 97, 40).tolist()
BIASED = {"q_bias": True, "k_bias": True, "v_bias": True, "out_bias": True}
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    model_type: str
    config: dict[str, Any]
    names: dict[str, str]
    spec: ModelSpec
    adapt: Callable[[Weights], Weights] = lambda weights: weights


def attention(**changes: Any) -> AttentionSpec:
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "scale": 8**-0.5, "rope": RopeSpec(dim=8)}
    return AttentionSpec(**fields | changes)


def model(layers: tuple[LayerSpec, ...], **changes: Any) -> ModelSpec:
    fields = {"family": "test", "vocab_size": 97, "hidden_size": 32, "max_position": 128, "layers": layers}
    return ModelSpec(**fields | changes)


def layer(mixer: AttentionSpec, mlp: MlpSpec, **changes: Any) -> LayerSpec:
    return LayerSpec(mixer=mixer, mlp=mlp, **changes)


PHI = Case(
    "phi",
    {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5},
    HF
    | {
        "model.layers.{i}.self_attn.dense.": "layers.{i}.o_proj.",
        "model.layers.{i}.mlp.fc1.": "layers.{i}.up_proj.",
        "model.layers.{i}.mlp.fc2.": "layers.{i}.down_proj.",
        "model.final_layernorm.": "norm.",
    },
    model(
        (
            layer(
                attention(rope=RopeSpec(dim=4), **BIASED),
                MlpSpec(intermediate_size=48, activation="gelu_tanh", gated=False, bias=True),
                parallel=True,
            ),
        )
        * 3,
        norm="layer",
        norm_bias=True,
        norm_eps=1e-5,
        lm_head_bias=True,
    ),
)


def opt(*, is_pre: bool) -> Case:
    post_names = {"self_attn_layer_norm.": "attn_post_norm.", "final_layer_norm.": "mlp_post_norm."}
    pre_names = {"self_attn_layer_norm.": "attn_norm.", "final_layer_norm.": "mlp_norm."}
    inner = {"fc1.": "up_proj.", "fc2.": "down_proj.", "self_attn.out_proj.": "o_proj.", "self_attn.": ""}
    in_layer = inner | (pre_names if is_pre else post_names)
    mlp = MlpSpec(intermediate_size=48, activation="relu", gated=False, bias=True)
    mixer = attention(num_kv_heads=4, rope=None, **BIASED)
    return Case(
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 32 if is_pre else 16, "do_layer_norm_before": is_pre},
        {f"model.decoder.layers.{{i}}.{hf}": f"layers.{{i}}.{ours}" for hf, ours in in_layer.items()}
        | {"model.decoder.final_layer_norm.": "norm.", "model.decoder.": ""},
        model(
            (layer(mixer, mlp, norms="pre" if is_pre else "post"),) * 3,
            norm="layer",
            norm_bias=True,
            norm_eps=1e-5,
            final_norm=is_pre,
            position="learned",
            position_offset=2,
            embedding_size=None if is_pre else 16,
            tie_word_embeddings=True,
        ),
    )


OLMO2 = Case(
    "olmo2",
    {"rms_norm_eps": 1e-5},
    HF
    | {
        "model.layers.{i}.post_attention_layernorm.": "layers.{i}.attn_post_norm.",
        "model.layers.{i}.post_feedforward_layernorm.": "layers.{i}.mlp_post_norm.",
    },
    model((layer(attention(qk_norm="full"), MlpSpec(intermediate_size=48), norms="output"),) * 3, norm_eps=1e-5),
)

GEMMA2_ATTENTION = attention(scale=16**-0.5, logit_softcap=2.0)
GEMMA2_LAYERS = tuple(
    layer(mixer, MlpSpec(intermediate_size=48, activation="gelu_tanh"), norms="sandwich")
    for mixer in (
        attention(scale=16**-0.5, logit_softcap=2.0, sliding_window=6),
        GEMMA2_ATTENTION,
        attention(scale=16**-0.5, logit_softcap=2.0, sliding_window=6),
    )
)
GEMMA2 = Case(
    "gemma2",
    {
        "head_dim": 8,
        "sliding_window": 6,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    HF | HF_SANDWICH,
    model(GEMMA2_LAYERS, logit_softcap=3.0, embedding_scale=32**0.5, tie_word_embeddings=True),
    lambda weights: {name: w + 1 if w.ndim == 1 else w for name, w in weights.items()},
)

GRANITE = Case(
    "granite",
    {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.2},
    HF,
    model(
        (layer(attention(scale=0.2), MlpSpec(intermediate_size=48), residual_scale=0.5),) * 3,
        embedding_scale=3.0,
        logit_scale=0.5,
    ),
)


def split_bloom(weights: Weights) -> Weights:
    """Bloom fuses q, k and v head by head."""
    split = {}
    for name, value in weights.items():
        if "query_key_value" not in name:
            split[name] = value
            continue
        parts = value.reshape(6, 3, -1, *value.shape[1:])
        for i, letter in enumerate("qkv"):
            split[name.replace("query_key_value", f"{letter}_proj")] = parts[:, i].reshape(-1, *value.shape[1:])
    return split


BLOOM = Case(
    "bloom",
    {"hidden_size": 48, "num_attention_heads": 6, "slow_but_exact": False},
    {
        "transformer.word_embeddings.": "embed_tokens.",
        "transformer.word_embeddings_layernorm.": "embed_norm.",
        "transformer.ln_f.": "norm.",
        "transformer.h.{i}.input_layernorm.": "layers.{i}.attn_norm.",
        "transformer.h.{i}.post_attention_layernorm.": "layers.{i}.mlp_norm.",
        "transformer.h.{i}.self_attention.dense.": "layers.{i}.o_proj.",
        "transformer.h.{i}.self_attention.": "layers.{i}.",
        "transformer.h.{i}.mlp.dense_h_to_4h.": "layers.{i}.up_proj.",
        "transformer.h.{i}.mlp.dense_4h_to_h.": "layers.{i}.down_proj.",
    },
    model(
        (
            layer(
                attention(num_heads=6, num_kv_heads=6, rope=None, **BIASED),
                MlpSpec(intermediate_size=192, activation="gelu_tanh", gated=False, bias=True),
            ),
        )
        * 3,
        hidden_size=48,
        norm="layer",
        norm_bias=True,
        norm_eps=1e-5,
        position="alibi",
        embedding_norm=True,
        tie_word_embeddings=True,
    ),
    split_bloom,
)

CASES = {
    "phi": PHI,
    "opt": opt(is_pre=True),
    "opt-350m": opt(is_pre=False),
    "olmo2": OLMO2,
    "gemma2": GEMMA2,
    "granite": GRANITE,
    "bloom": BLOOM,
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str) -> None:
    case = CASES[name]
    hf = tiny_models.build(case.model_type, **case.config)
    states = {rename(k, case.names): v.numpy() for k, v in hf.state_dict().items()}
    states.pop("lm_head.weight" if case.spec.tie_word_embeddings else None, None)
    states.pop(None, None)
    weights = {k: tiny_models.tensor(v) for k, v in case.adapt(states).items()}  # type: ignore[arg-type]
    assert {k: t.shape for k, t in weights.items()} == tensor_shapes(case.spec)
    backend = load_backend("reference", case.spec, weights, BackendOptions(max_model_len=64))
    ours, theirs = Driver(backend).logits(TEXT), tiny_models.logits(hf, TEXT)
    assert np.abs(theirs).max() > 1, "logits this small would prove nothing"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_sinks_equal_gpt_oss() -> None:
    rng, a = np.random.default_rng(3), attention(sinks=True, sliding_window=7)
    q, k, v = (rng.standard_normal((20, heads, 8), np.float32) for heads in (4, 2, 2))
    sinks = rng.standard_normal(4).astype(np.float32)
    distance = np.arange(20)[:, None] - np.arange(20)
    mask = np.where((distance < 0) | (distance >= 7), np.finfo(np.float32).min, 0).astype(np.float32)
    module = SimpleNamespace(num_key_value_groups=2, sinks=torch.from_numpy(sinks), training=False)
    batched = [torch.from_numpy(x.transpose(1, 0, 2)[None]) for x in (q, k, v)]
    theirs, _ = eager_attention_forward(module, *batched, torch.from_numpy(mask)[None, None], scaling=a.scale)
    ours = attend(a, q, k, v, 0, 0, None, sinks)
    np.testing.assert_allclose(ours, theirs[0].numpy().reshape(20, -1), rtol=0, atol=1e-6)


def test_squared_relu_equals_torch() -> None:
    x = np.linspace(-3, 3, 31, dtype=np.float32)
    theirs = torch.nn.functional.relu(torch.from_numpy(x)).square().numpy()
    np.testing.assert_allclose(ACTIVATIONS["relu2"](x), theirs, rtol=1e-6)
