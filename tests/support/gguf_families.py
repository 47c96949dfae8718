"""GGUF files of tiny transformers models as llama.cpp's converter writes them, by the gguf package and its names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel

Array = np.ndarray
Config = Mapping[str, Any]
Change = Callable[[str, Array, Config], Array]

ARCHS: Mapping[str, gguf.MODEL_ARCH] = {
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "bloom": gguf.MODEL_ARCH.BLOOM,
    "falcon": gguf.MODEL_ARCH.FALCON,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "cohere": gguf.MODEL_ARCH.COMMAND_R,
    "cohere2": gguf.MODEL_ARCH.COHERE2,
    "granite": gguf.MODEL_ARCH.GRANITE,
}


def write(model: PreTrainedModel, path: Path) -> None:
    """The whole model in float32."""
    config = model.config.to_dict()
    arch = ARCHS[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_vocab_size(config["vocab_size"])
    _add_sizes(writer, model.config)
    _add_rope(writer, config)
    _add_extras(writer, config)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    change = CHANGES.get(config["model_type"], _as_it_is)
    for name, value in _stacked(model):
        known = (
            names.get_name(n, try_suffixes=(".weight", ".bias")) for n in (name, name.removeprefix("transformer."))
        )
        target = next(filter(None, known))
        writer.add_tensor(target, np.ascontiguousarray(change(name, value, _sizes(model.config))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sizes(config: Any) -> Config:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if config.model_type == "falcon":
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
    return {"hidden": config.hidden_size, "heads": heads, "kv_heads": kv_heads}


def _add_sizes(writer: gguf.GGUFWriter, c: Any) -> None:
    sizes = _sizes(c)
    inner = getattr(c, "intermediate_size", None) or 4 * c.hidden_size
    writer.add_context_length(getattr(c, "max_position_embeddings", None) or c.seq_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    if (eps := getattr(c, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(getattr(c, "layer_norm_eps", None) or c.layer_norm_epsilon)
    if (head_dim := c.to_dict().get("head_dim")) is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def _add_rope(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if "partial_rotary_factor" in rope:
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope.get("rope_type") == "longrope":
        original = rope["original_max_position_embeddings"]
        growth = math.log(config["max_position_embeddings"] / original) / math.log(original)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + growth))
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def _add_extras(writer: gguf.GGUFWriter, config: Config) -> None:
    kind = config["model_type"]
    if kind in ("gemma2", "cohere2", "phi3"):
        writer.add_sliding_window(config["sliding_window"] or 0)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if kind in ("cohere", "cohere2"):
        writer.add_logit_scale(config["logit_scale"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if kind == "stablelm":
        writer.add_parallel_residual(config["use_parallel_residual"])
    if kind == "falcon":
        writer.add_tensor_data_layout("jploski")
    if kind == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])


def _stacked(model: PreTrainedModel) -> Iterator[tuple[str, Array]]:
    """The state dict, with one tensor for the norms of all heads and no head that is the embedding."""
    heads: dict[str, list[Array]] = {}
    is_tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if ".norms." in name:
            heads.setdefault(name.split(".norms.")[0], []).append(value.numpy())
        elif not (is_tied and name == "lm_head.weight"):
            yield name, value.numpy()
    yield from ((f"{name}.weight", np.stack(values)) for name, values in heads.items())


def _as_it_is(name: str, value: Array, sizes: Config) -> Array:
    return value


def _rotated_pairs_together(name: str, value: Array, sizes: Config) -> Array:
    """LlamaModel.permute of llama.cpp's converter."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return value
    heads = sizes["heads" if ".q_proj." in name else "kv_heads"]
    return value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _transposed(name: str, value: Array, sizes: Config) -> Array:
    return value.T if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else value


def _gains_with_one(name: str, value: Array, sizes: Config) -> Array:
    return value + 1 if name.endswith("norm.weight") else value


def _queries_keys_values(name: str, value: Array, sizes: Config) -> Array:
    """From groups of queries with their key and value to all queries, all keys, all values."""
    if "query_key_value" not in name:
        return value
    group = sizes["heads"] // sizes["kv_heads"]
    parts = value.reshape(sizes["kv_heads"], group + 2, sizes["hidden"] // sizes["heads"], *value.shape[1:])
    rows = (parts[:, :group], parts[:, group : group + 1], parts[:, group + 1 :])
    return np.concatenate([part.reshape(-1, *value.shape[1:]) for part in rows])


CHANGES: Mapping[str, Change] = {
    "granite": _rotated_pairs_together,
    "smollm3": _rotated_pairs_together,
    "ministral3": _rotated_pairs_together,
    "gpt2": _transposed,
    "gemma2": _gains_with_one,
    "bloom": _queries_keys_values,
    "falcon": _queries_keys_values,
}
