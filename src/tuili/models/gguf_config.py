"""GGUF metadata in the one vocabulary of ConfigReader, config.json's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.config_keys import GGUF_HARMLESS, GGUF_KEYS, GGUF_SPECIAL
from tuili.models.names import ROPE_VECTORS
from tuili.models.reader import Config, ConfigReader, short

DIVISORS, SHORT_FACTORS, LONG_FACTORS = ROPE_VECTORS


def gguf_config(
    metadata: Mapping[str, Any], tensor_names: Iterable[str], rope_vectors: Mapping[str, list[float]] | None = None
) -> Config:
    """GGUF metadata in the vocabulary of config.json, as far as the two name the same things.

    tensor_names decides what GGUF does not state: a missing output.weight means tied embeddings, present biases
    mean biases. rope_vectors: the tensors of ROPE_VECTORS that the file has.
    Raises ModelFileError, and UnsupportedModelError for an architecture key nobody knows here.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ModelFileError(f"GGUF: general.architecture is {short(arch)}; allowed: the name of an architecture")
    prefix = f"{arch}."
    found = {key[len(prefix) :]: _scalar(key, value) for key, value in metadata.items() if key.startswith(prefix)}
    for key, value in found.items():
        if key not in GGUF_KEYS and key not in GGUF_SPECIAL and key not in GGUF_HARMLESS and value not in (0, False):
            raise UnsupportedModelError(f"GGUF: {prefix}{key} is {short(value)}, which is not implemented")
    config: Config = {name: found[key] for key, name in GGUF_KEYS.items() if key in found}
    config["model_type"] = arch
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, (list, tuple)):
        config["vocab_size"] = len(tokens)
    names = set(tensor_names)
    config["tie_word_embeddings"] = "output.weight" not in names
    config["attention_bias"] = True if names & {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} else None
    config["mlp_bias"] = True if "blk.0.ffn_up.bias" in names else None
    config["has_qk_norm"] = True if "blk.0.attn_q_norm.weight" in names else None
    config["multi_query"] = False  # attention.head_count_kv says what there is
    config["num_ln_in_parallel_attn"] = 2 if "blk.0.attn_norm_2.weight" in names else None
    config["llama_4_scaling_length"] = found.get("rope.scaling.original_context_length")
    vectors = rope_vectors or {}
    config["rope_frequency_divisors"] = vectors.get(DIVISORS)
    config |= _gguf_head_dim(arch, found) | _gguf_layer_types(prefix, found)
    return config | _gguf_rope_scaling(prefix, found, vectors.get(SHORT_FACTORS), vectors.get(LONG_FACTORS))


def _scalar(key: str, value: Any) -> Any:
    """GGUF may state a number once per layer; layers that differ stay a list, which no typed read accepts."""
    is_number_list = isinstance(value, (list, tuple)) and len(value) > 0 and not isinstance(value[0], bool)
    if is_number_list and all(item == value[0] for item in value) and not key.endswith("sliding_window_pattern"):
        return value[0]
    return value


def _gguf_head_dim(arch: str, found: Mapping[str, Any]) -> Config:
    c = ConfigReader(found, f"{arch}.")
    hidden, heads = c.integer("embedding_length"), c.integer("attention.head_count")
    head_dim = c.integer("attention.key_length", max(hidden // heads, 1))
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        if c.integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(f"GGUF: {arch}.{key} is {found[key]}; allowed: the key length {head_dim}")
    if not c.flag("attention.causal", True):
        raise UnsupportedModelError(f"GGUF: {arch}.attention.causal is false; allowed: true")
    rotary = c.integer("rope.dimension_count", head_dim)
    if c.integer("rope.dimension_count_swa", rotary) != rotary:
        raise UnsupportedModelError(f"GGUF: {arch}.rope.dimension_count_swa differs from rope.dimension_count")
    return {"head_dim": head_dim, "partial_rotary_factor": rotary / head_dim}


def _gguf_layer_types(prefix: str, found: Mapping[str, Any]) -> Config:
    pattern = found.get("attention.sliding_window_pattern")
    if pattern is None:
        return {}
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        return {"sliding_window_pattern": pattern}
    if isinstance(pattern, (list, tuple)) and all(item in (0, 1) for item in pattern):
        return {"layer_types": ["sliding_attention" if is_local else "full_attention" for is_local in pattern]}
    raise ModelFileError(
        f"GGUF: {prefix}attention.sliding_window_pattern is {short(pattern)}; allowed: an integer or one flag a layer"
    )


def _gguf_rope_scaling(
    prefix: str, found: Mapping[str, Any], short_factors: list[float] | None, long_factors: list[float] | None
) -> Config:
    """llama.cpp's scaling keys. Its yarn attn_factor multiplies YaRN's own factor, which config.json states whole."""
    if (scale := found.get("rope.scale_linear")) is not None:
        return {"rope_scaling": {"rope_type": "linear", "factor": scale}}
    kind = "longrope" if long_factors else found.get("rope.scaling.type")
    if kind in (None, "none"):
        return {}
    for key, neutral in (("yarn_ext_factor", 1), ("yarn_attn_factor", 1)):
        value = found.get(f"rope.scaling.{key}", neutral)
        if value != neutral:
            raise UnsupportedModelError(f"GGUF: {prefix}rope.scaling.{key} is {short(value)}; allowed: {neutral}")
    names = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
        "attn_factor": "attention_factor",
        "yarn_log_multiplier": "mscale_all_dim",
    }
    scaling = {hf: found[f"rope.scaling.{key}"] for key, hf in names.items() if f"rope.scaling.{key}" in found}
    if kind == "longrope":
        scaling |= {"short_factor": short_factors, "long_factor": long_factors}
    if scaling.get("mscale_all_dim"):
        scaling["mscale"] = 1.0  # which llama.cpp takes for granted
    if kind == "linear":
        scaling.pop("original_max_position_embeddings", None)
    if kind != "longrope" and scaling.pop("attention_factor", 1) != 1:
        raise UnsupportedModelError(f"GGUF: {prefix}rope.scaling.attn_factor is not implemented for {kind}; allowed: 1")
    return {"rope_scaling": {"rope_type": kind, **scaling}}
