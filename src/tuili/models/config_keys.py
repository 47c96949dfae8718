"""Which configuration keys exist and what they mean: tables only.

One vocabulary inside: the keys of a Hugging Face config.json. GGUF's keys are mapped to it.
"""

from __future__ import annotations

from collections.abc import Mapping

# Keys that change what a model computes, each with the values under which it changes nothing. A family that
# does not read such a key cannot run a model that sets it otherwise. null is always neutral.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "activation_sparsity_scale": (0,),
    "add_cross_attention": (False,),
    "alibi": (False,),
    "alibi_max_bias": (0,),
    "altup_num_inputs": (0,),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_bias": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attention_out_bias": (False,),
    "attention_scale": (),
    "attn_logit_softcapping": (0,),
    "attn_output_gate": (False,),
    "bias": (False,),
    "cross_attention_layers": ([],),
    "clip_qkv": (0,),
    "decoder_sparse_step": (0, 1),
    "dim_model_base": (),
    "do_layer_norm_before": (True,),
    "embedding_multiplier": (1,),
    "enable_bias": (True,),
    "final_logit_softcapping": (0,),
    "head_dim": (),
    "hidden_act": (),
    "hidden_activation": (),
    "hidden_size_per_layer_input": (0,),
    "is_encoder_decoder": (False,),
    "kv_lora_rank": (0,),
    "layer_norm_elementwise_affine": (True,),
    "layer_types": (),
    "llama_4_scaling_beta": (0,),
    "lm_head_multiplier": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "mlp_only_layers": ([],),
    "moe_num_experts": (0,),
    "multi_query": (False,),
    "n_routed_experts": (0,),
    "new_decoder_architecture": (False,),
    "no_rope_layer_interval": (0,),
    "no_rope_layers": ([],),
    "num_experts": (0, 1),
    "num_kv_shared_layers": (0,),
    "num_ln_in_parallel_attn": (),
    "num_local_experts": (0, 1),
    "parallel_attn": (False,),
    "partial_rotary_factor": (1,),
    "q_lora_rank": (0,),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "qkv_bias": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_frequency_divisors": (),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "rope_local_scaling": (),
    "rope_scaling": (),
    "rope_theta": (),
    "scale_depth": (),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "scale_emb": (1,),
    "sliding_window": (0,),
    "sliding_window_pattern": (),
    "use_bias": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "use_qkv_bias": (False,),
    "use_sliding_window": (False,),
    "vision_config": (),
    "word_embed_proj_dim": (),
}

# What older model types call what all have -> today's name. A configuration that has both means today's.
HF_ALIASES: Mapping[str, str] = {
    "activation": "hidden_act",
    "activation_function": "hidden_act",
    "ffn_dim": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "num_kv_heads": "num_key_value_heads",
    "seq_length": "max_position_embeddings",
}

# GGUF metadata key after "{arch}." -> config.json key.
GGUF_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_scale",
    "attention.temperature_scale": "llama_4_scaling_beta",
    "attention.clamp_kqv": "clip_qkv",
    "attention.max_alibi_bias": "alibi_max_bias",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "use_parallel_residual": "use_parallel_residual",
    "expert_count": "num_experts",
    "activation_sparsity_scale": "activation_sparsity_scale",
    "altup.num_inputs": "altup_num_inputs",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
}

# GGUF keys that gguf_config reads in its own way.
GGUF_SPECIAL = frozenset(
    (
        "attention.causal",
        "attention.key_length_swa",
        "attention.sliding_window_pattern",
        "attention.value_length",
        "attention.value_length_swa",
        "rope.dimension_count",
        "rope.dimension_count_swa",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_log_multiplier",
    )
)

# GGUF keys that change nothing by themselves: they detail a feature switched on by a key above.
GGUF_HARMLESS = frozenset(
    (
        "expert_feed_forward_length",
        "expert_gating_func",
        "expert_shared_count",
        "expert_shared_feed_forward_length",
        "expert_used_count",
        "expert_weights_norm",
        "expert_weights_scale",
        "leading_dense_block_count",
        "pooling_type",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    )
)

# rope_scaling: what each kind may hold beside its name.
ROPE_SCALING_KEYS: Mapping[str, frozenset[str]] = {
    "linear": frozenset(("factor",)),
    "dynamic": frozenset(("factor", "original_max_position_embeddings")),
    "llama3": frozenset(("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")),
    "yarn": frozenset(
        (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        )
    ),
    "longrope": frozenset(
        ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor")
    ),
}

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
