"""Gemma 2: Gemma 3 with soft caps instead of q and k norms, and every other layer sliding."""

from __future__ import annotations

from dataclasses import replace

from tuili.models.families import gemma3, gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED, HF_SANDWICH
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("gemma2",), ("gemma2",)
HF_NAMES, GGUF_NAMES = HF | HF_SANDWICH, GGUF
HF_TRANSFORMS = {name: gain for name, gain in gemma3.HF_TRANSFORMS.items() if name not in ("q_norm", "k_norm")}
GGUF_TRANSFORMS: dict[str, str] = {}  # GGUF's gains already include the 1
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED

_LAYERS_OF_27B = 46  # GGUF omits query_pre_attn_scalar; only this size does not use head_dim


def spec(c: ConfigReader) -> ModelSpec:
    base = llama.attention(c, default_head_dim=256, **llama.biases(c.flag("attention_bias", False)))
    count = llama.num_layers(c)
    default = c.integer("hidden_size") / base.num_heads if count == _LAYERS_OF_27B else float(base.head_dim)
    full = replace(
        base,
        scale=c.number("query_pre_attn_scalar", default) ** -0.5,
        logit_softcap=c.optional_number("attn_logit_softcapping", 50.0),
    )
    mlp = llama.mlp(c, activation=gemma3.activation(c))
    layer = {
        "full_attention": LayerSpec(mixer=full, mlp=mlp, norms="sandwich"),
        "sliding_attention": LayerSpec(
            mixer=replace(full, sliding_window=c.integer("sliding_window", 4096)), mlp=mlp, norms="sandwich"
        ),
    }
    return llama.decoder(
        c,
        "gemma2",
        tuple(layer[kind] for kind in gemma3.layer_kinds(c, period=2)),
        embedding_scale=c.integer("hidden_size") ** 0.5,
        logit_softcap=c.optional_number("final_logit_softcapping", 30.0),
        **gpt2.tied(c),
    )
