"""GPT-2: learned positions, LayerNorm, biases everywhere, a plain MLP.

Its checkpoints hold matrices as [in, out] and q, k and v fused; older ones leave out the "transformer." before every
name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, NameTable
from tuili.models.reader import ConfigReader
from tuili.models.spec import Activation, LayerSpec, MlpSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("gpt2",), ("gpt2",)
_NAMES = {
    "wte.": "embed_tokens.",
    "wpe.": "embed_positions.",
    "ln_f.": "norm.",
    "h.{i}.ln_1.": "layers.{i}.attn_norm.",
    "h.{i}.ln_2.": "layers.{i}.mlp_norm.",
    "h.{i}.attn.c_attn.": "layers.{i}.qkv_proj.",
    "h.{i}.attn.c_proj.": "layers.{i}.o_proj.",
    "h.{i}.mlp.c_fc.": "layers.{i}.up_proj.",
    "h.{i}.mlp.c_proj.": "layers.{i}.down_proj.",
}


def with_prefix(names: NameTable, prefix: str) -> NameTable:
    """The names as they are and behind `prefix`, and the head."""
    return names | {f"{prefix}{name}": ours for name, ours in names.items()} | {"lm_head.": "lm_head."}


HF_NAMES, GGUF_NAMES = with_prefix(_NAMES, "transformer."), GGUF
HF_TRANSFORMS = dict.fromkeys(("qkv_proj", "o_proj", "up_proj", "down_proj"), "transpose")
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = (".attn.bias", ".attn.masked_bias"), GGUF_DERIVED  # causal masks


def spec(c: ConfigReader) -> ModelSpec:
    base = llama.attention(c, rope=None, **llama.biases(c.flag("attention_bias", True)))
    scale = base.scale if c.flag("scale_attn_weights", True) else 1.0
    by_layer = c.flag("scale_attn_by_inverse_layer_idx", False)
    mlp = plain_mlp(c, "gelu_tanh", c.flag("mlp_bias", True))
    mixers = (replace(base, scale=scale / (i + 1 if by_layer else 1)) for i in range(llama.num_layers(c)))
    layers = tuple(LayerSpec(mixer=mixer, mlp=mlp) for mixer in mixers)
    return llama.decoder(c, "gpt2", layers, position="learned", **layer_norm(c), **tied(c))


def plain_mlp(c: ConfigReader, default: Activation, bias: bool) -> MlpSpec:
    """Not gated, four times as wide as the model unless stated."""
    size = c.integer("intermediate_size", 4 * c.integer("hidden_size"))
    activation = c.activation("hidden_act", default)
    return llama.mlp(c, intermediate_size=size, activation=activation, gated=False, bias=bias)


def layer_norm(c: ConfigReader, *, bias: bool = True) -> dict[str, Any]:
    """ModelSpec fields: LayerNorm everywhere."""
    return {"norm": "layer", "norm_bias": bias, "norm_eps": c.number("layer_norm_eps", 1e-5)}


def tied(c: ConfigReader) -> dict[str, bool]:
    """ModelSpec fields: the head is the embedding unless stated otherwise."""
    return {"tie_word_embeddings": c.flag("tie_word_embeddings", True)}
