"""Qwen3: llama with an RMSNorm over every head of q and k."""

from __future__ import annotations

from tuili.models.families import llama, qwen2
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import ModelSpec

HF_TYPES, GGUF_ARCHS = ("qwen3",), ("qwen3",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    attention = llama.attention(c, default_head_dim=128, qk_norm="head", **llama.biases(bias))
    return llama.decoder(c, "qwen3", qwen2.layers(c, attention))
