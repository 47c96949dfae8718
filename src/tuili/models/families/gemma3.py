"""Gemma 3 text: sandwich norms, (1 + w) gains, q/k norm, scaled embedding, five sliding layers to one global.

Global layers have their own rotary base, and scaling where the context was stretched; local ones never do.
The embedding's scale is sqrt(hidden_size) in float32; transformers rounds it to the dtype of the weights.
"""

from __future__ import annotations

from dataclasses import replace

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED, HF_SANDWICH
from tuili.models.reader import ConfigReader
from tuili.models.spec import Activation, AttentionSpec, LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("gemma3_text",), ("gemma3",)
HF_NAMES, GGUF_NAMES = HF | HF_SANDWICH, GGUF
_NORMS = ("norm", "attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm")
HF_TRANSFORMS = dict.fromkeys(_NORMS, "add_one")
GGUF_TRANSFORMS: dict[str, str] = {}  # GGUF's gains already include the 1
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED

_LAYERS_OF_27B = 62  # GGUF omits query_pre_attn_scalar; only this size does not use head_dim


def spec(c: ConfigReader) -> ModelSpec:
    full, local = _attention(c)
    mlp = llama.mlp(c, activation=activation(c))
    layer = {
        "full_attention": LayerSpec(mixer=full, mlp=mlp, norms="sandwich"),
        "sliding_attention": LayerSpec(mixer=local, mlp=mlp, norms="sandwich"),
    }
    return llama.decoder(
        c,
        "gemma3",
        tuple(layer[kind] for kind in layer_kinds(c, period=6)),
        embedding_scale=c.integer("hidden_size") ** 0.5,
        logit_softcap=c.optional_number("final_logit_softcapping"),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
    )


def _attention(c: ConfigReader) -> tuple[AttentionSpec, AttentionSpec]:
    bias = c.flag("attention_bias", False)
    base = llama.attention(c, default_head_dim=256, qk_norm="head", **llama.biases(bias))
    is_27b = llama.num_layers(c) == _LAYERS_OF_27B
    default_scalar = c.integer("hidden_size") / base.num_heads if is_27b else float(base.head_dim)
    full = replace(
        base,
        scale=c.number("query_pre_attn_scalar", default_scalar) ** -0.5,
        logit_softcap=c.optional_number("attn_logit_softcapping"),
        rope=c.rope(base.head_dim, default_theta=1_000_000.0),
    )
    local_rope = c.local_rope(base.head_dim, default_theta=10_000.0)
    return full, replace(full, sliding_window=c.integer("sliding_window", 4096), rope=local_rope)


def activation(c: ConfigReader) -> Activation:
    return c.activation("hidden_activation", c.activation("hidden_act", "gelu_tanh"))


def layer_kinds(c: ConfigReader, *, period: int) -> tuple[str, ...]:
    """Sliding layers but for the last of each `period`, unless stated."""
    period, count = c.integer("sliding_window_pattern", period), llama.num_layers(c)
    return c.layer_types(tuple("sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)))
