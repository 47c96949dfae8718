"""Qwen2 and Qwen2.5: llama with q, k and v biases. MiMo is a Qwen2 with extra prediction layers, left unread."""

from __future__ import annotations

from dataclasses import replace

from tuili.errors import ModelFileError
from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import AttentionSpec, LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("qwen2", "mimo"), ("qwen2",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = (*HF_DERIVED, "model.mtp_layers."), GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", True)
    attention = llama.attention(c, q_bias=bias, k_bias=bias, v_bias=bias)
    return llama.decoder(c, "qwen2", layers(c, attention))


def layers(c: ConfigReader, attention: AttentionSpec) -> tuple[LayerSpec, ...]:
    """Full attention, or a sliding window in the layers that layer_types or max_window_layers name."""
    count = llama.num_layers(c)
    window = c.optional_integer("sliding_window", 4096)
    window = window if c.flag("use_sliding_window", False) else None
    first_local = min(c.integer("max_window_layers", 28, low=0), count) if window else count
    kinds = c.layer_types(("full_attention",) * first_local + ("sliding_attention",) * (count - first_local))
    if window is None and "sliding_attention" in kinds:
        raise ModelFileError("config: layer_types has sliding_attention; allowed: only with use_sliding_window")
    mlp = llama.mlp(c)
    full = LayerSpec(mixer=attention, mlp=mlp)
    local = LayerSpec(mixer=replace(attention, sliding_window=window), mlp=mlp)
    return tuple(local if kind == "sliding_attention" else full for kind in kinds)
