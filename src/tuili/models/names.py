"""Checkpoint tensor name -> canonical name, as tables every family shares. Knows names; not shapes or values.

A table maps prefixes ending in "." to canonical prefixes; "{i}" stands for a layer index and the longest prefix
wins. A family adds only where it differs: `HF | HF_SANDWICH`. Two kinds of names are not canonical yet, weights.sources
makes them so: fused matrices, "layers.0.qkv_proj.weight", and one tensor per head, "layers.0.q_norm.3.weight".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tuili.models.spec import ModelSpec

NameTable = dict[str, str]
Names = NameTable | Callable[[ModelSpec], NameTable]  # where what a tensor is depends on the spec

HF: NameTable = {
    "model.embed_tokens.": "embed_tokens.",
    "model.norm.": "norm.",
    "lm_head.": "lm_head.",
    "model.layers.{i}.self_attn.": "layers.{i}.",
    "model.layers.{i}.mlp.": "layers.{i}.",
    "model.layers.{i}.input_layernorm.": "layers.{i}.attn_norm.",
    "model.layers.{i}.post_attention_layernorm.": "layers.{i}.mlp_norm.",
}
HF_SANDWICH: NameTable = {
    "model.layers.{i}.post_attention_layernorm.": "layers.{i}.attn_post_norm.",
    "model.layers.{i}.pre_feedforward_layernorm.": "layers.{i}.mlp_norm.",
    "model.layers.{i}.post_feedforward_layernorm.": "layers.{i}.mlp_post_norm.",
}
HF_DERIVED = (".rotary_emb.inv_freq",)  # old checkpoints carry this table; it follows from the config

GGUF: NameTable = {
    "token_embd.": "embed_tokens.",
    "token_embd_norm.": "embed_norm.",
    "position_embd.": "embed_positions.",
    "output_norm.": "norm.",
    "output.": "lm_head.",
    "blk.{i}.attn_norm.": "layers.{i}.attn_norm.",
    "blk.{i}.attn_q.": "layers.{i}.q_proj.",
    "blk.{i}.attn_k.": "layers.{i}.k_proj.",
    "blk.{i}.attn_v.": "layers.{i}.v_proj.",
    "blk.{i}.attn_qkv.": "layers.{i}.qkv_proj.",
    "blk.{i}.attn_output.": "layers.{i}.o_proj.",
    "blk.{i}.attn_q_norm.": "layers.{i}.q_norm.",
    "blk.{i}.attn_k_norm.": "layers.{i}.k_norm.",
    "blk.{i}.post_attention_norm.": "layers.{i}.attn_post_norm.",
    "blk.{i}.ffn_norm.": "layers.{i}.mlp_norm.",
    "blk.{i}.post_ffw_norm.": "layers.{i}.mlp_post_norm.",
    "blk.{i}.ffn_gate.": "layers.{i}.gate_proj.",
    "blk.{i}.ffn_up.": "layers.{i}.up_proj.",
    "blk.{i}.ffn_down.": "layers.{i}.down_proj.",
}
# Read with the configuration: divisors of rotary frequencies, and longrope's, for short and for long texts.
ROPE_VECTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
GGUF_DERIVED = ROPE_VECTORS


def table_for(names: Names, spec: ModelSpec) -> NameTable:
    return names(spec) if callable(names) else names


_LAYER_INDEX = re.compile(r"\.(\d{1,6})\.")


def rename(name: str, table: NameTable) -> str | None:
    """The canonical name of a checkpoint tensor, or None when the table does not know it."""
    found = _LAYER_INDEX.search(name)
    index = found[1] if found else ""
    generic = f"{name[: found.start()]}.{{i}}.{name[found.end() :]}" if found else name
    prefix = max((p for p in table if generic.startswith(p)), key=len, default=None)
    return None if prefix is None else (table[prefix] + generic[len(prefix) :]).replace("{i}", index)


def is_ignored(name: str, affixes: tuple[str, ...]) -> bool:
    """Whether a checkpoint tensor is none of the model's weights: it starts or ends with one of `affixes`."""
    return name.startswith(affixes) or name.endswith(affixes)


def leaf(canonical: str) -> str:
    """The part transforms are keyed by: "q_proj" of "layers.3.q_proj.weight", "norm" of "norm.weight"."""
    return canonical.split(".")[-2]
