"""Falcon: BLOOM's names with three ways to build a layer. 7B: multi-query, attention and MLP side by side on one norm;
40B and 11B: grouped queries, side by side, on two norms or one; RW: one after the other, with ALiBi.

RW's ALiBi is added before scores are scaled; transformers rounds slopes and biases to bfloat16, here they are exact.
"""

from __future__ import annotations

from dataclasses import replace

from tuili.models.families import bloom, gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED, NameTable
from tuili.models.reader import ConfigReader
from tuili.models.spec import AttentionSpec, LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("falcon",), ("falcon",)
_TWO_NORMS = {"h.{i}.ln_attn.": "layers.{i}.attn_norm.", "h.{i}.ln_mlp.": "layers.{i}.mlp_norm."}


def _gguf_names(spec: ModelSpec) -> NameTable:
    """Of two norms, GGUF numbers the attention's second."""
    if spec.layers[0].parallel_norms == 1:
        return GGUF
    norms = {"blk.{i}.attn_norm.": "layers.{i}.mlp_norm.", "blk.{i}.attn_norm_2.": "layers.{i}.attn_norm."}
    return GGUF | norms


HF_NAMES, GGUF_NAMES = gpt2.with_prefix(bloom.NAMES | _TWO_NORMS, "transformer."), _gguf_names
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = (), GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    bias, is_new = c.flag("bias", False), c.flag("new_decoder_architecture", False)
    attention, has_alibi = _attention(c, bias, is_new), c.flag("alibi", False)
    num_norms = c.integer("num_ln_in_parallel_attn", 2 if is_new else 1, high=2)
    is_parallel = c.flag("parallel_attn", True) or is_new
    layer = LayerSpec(
        mixer=replace(attention, rope=None) if has_alibi else attention,
        mlp=gpt2.plain_mlp(c, "gelu", bias),
        parallel=is_parallel,
        parallel_norms=2 if is_parallel and num_norms == 2 else 1,
    )
    return llama.decoder(
        c,
        "falcon",
        (layer,) * llama.num_layers(c),
        default_max_position=2048,
        position="alibi" if has_alibi else "rope",
        alibi_scale=attention.scale if has_alibi else 1.0,
        **gpt2.layer_norm(c),
        **gpt2.tied(c),
    )


def _attention(c: ConfigReader, bias: bool, is_new: bool) -> AttentionSpec:
    """num_kv_heads counts only where queries are grouped."""
    base = llama.attention(c, **llama.biases(bias))
    is_multi_query = c.flag("multi_query", True) and not is_new
    return replace(base, num_kv_heads=1) if is_multi_query else base
