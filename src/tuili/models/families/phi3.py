"""Phi-3 and Phi-4-mini: llama with fused matrices; long contexts stretch rotary frequencies one by one."""

from __future__ import annotations

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("phi3",), ("phi3",)
HF_NAMES, GGUF_NAMES = HF, GGUF | {"blk.{i}.ffn_up.": "layers.{i}.gate_up_proj."}
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    window = c.integer("sliding_window", 0, low=0) or None  # GGUF: 0 is none
    layer = LayerSpec(mixer=llama.attention(c, sliding_window=window), mlp=llama.mlp(c))
    return llama.decoder(c, "phi3", (layer,) * llama.num_layers(c), norm_eps=c.number("rms_norm_eps", 1e-5))
