"""Tiny configurations of every family and of every variant that changes the mathematics, for transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from support import tiny_models

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
GROWING_QUERIES = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "image_size": 16,
    "patch_size": 8,
}
# Each model type's own names for sizes stand in the configuration; those of others must not.
NO_GROUPS = ("num_key_value_heads",)
PLAIN = ("num_key_value_heads", "intermediate_size")

MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-llama3-gqa-tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-mqa-biases-wide-heads": (
        "llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    "llama-dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
            "max_position_embeddings": 16,
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-longrope": ("llama", {"rope_parameters": LONGROPE}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "ministral": ("ministral", {"head_dim": 8, "sliding_window": 5, "layer_types": ALTERNATING}),
    "ministral3": ("ministral3", {"rope_parameters": GROWING_QUERIES, "head_dim": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-window": (
        "qwen3",
        {
            "head_dim": 8,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ALTERNATING,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3-stretched-softcap": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 9,
            "layer_types": ALTERNATING,
            "rope_parameters": GEMMA_ROPE,
            "final_logit_softcapping": 3.0,
        },
    ),
    "opt": ("opt", {"without": PLAIN, "ffn_dim": 48}),
    "opt-no-bias-no-final-norm": (
        "opt",
        {"without": PLAIN, "ffn_dim": 48, "enable_bias": False, "_remove_final_layer_norm": True},
    ),
    "opt-350m": (
        "opt",
        {"without": PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "gpt2": ("gpt2", {"without": PLAIN}),
    "gpt2-scaled-by-layer": (
        "gpt2",
        {
            "without": PLAIN,
            "n_inner": 48,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2-unscaled": ("gpt2", {"without": PLAIN, "scale_attn_weights": False}),
    "phi3": ("phi3", {}),
    "phi3-window-partial": (
        "phi3",
        {"sliding_window": 6, "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    "phi3-longrope": ("phi3", {"rope_parameters": LONGROPE | {"factor": 8.0}, "original_max_position_embeddings": 16}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3-interval": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3-window-untied": (
        "smollm3",
        {
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo2-biases": ("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-12b": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5}),
    "falcon-7b": ("falcon", {"without": PLAIN}),
    "falcon-40b": ("falcon", {"without": PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "falcon",
        {
            "without": PLAIN,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
    ),
    "falcon-rw": (
        "falcon",
        {
            "without": PLAIN,
            "ffn_hidden_size": 48,
            "attention": "sdpa",  # transformers' eager attention adds the bias twice
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
        },
    ),
    "bloom": ("bloom", {"without": PLAIN, "seq_length": 128}),
    "bloom-six-heads": ("bloom", {"without": PLAIN, "hidden_size": 48, "num_attention_heads": 6}),
    "granite": (
        "granite",
        {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.2},
    ),
    "granite-biases": ("granite", {"attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.3}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere-normed-heads": ("cohere", {"logit_scale": 0.5, "use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("cohere2", {"logit_scale": 0.5, "sliding_window": 6, "num_hidden_layers": 5}),
    "cohere2-alternating": ("cohere2", {"logit_scale": 0.5, "sliding_window": 6, "layer_types": ALTERNATING}),
}


def build(name: str) -> PreTrainedModel:
    model_type, config = MODELS[name]
    return tiny_models.build(model_type, **config)
