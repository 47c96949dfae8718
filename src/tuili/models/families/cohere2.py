"""Command R7B: Command R with three sliding layers to each global one; only sliding layers have positions."""

from __future__ import annotations

from dataclasses import replace

from tuili.models.families import cohere, gemma3, llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import ModelSpec

HF_TYPES, GGUF_ARCHS = ("cohere2",), ("cohere2",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS = dict.fromkeys(("q_proj", "k_proj"), "unpermute_rope")
GGUF_TRANSFORMS = HF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    base = llama.attention(c, **llama.biases(c.flag("attention_bias", False)))
    mixer = {
        "full_attention": replace(base, rope=None),
        "sliding_attention": replace(base, sliding_window=c.integer("sliding_window", 4096)),
    }
    return cohere.decoder(c, "cohere2", tuple(mixer[kind] for kind in gemma3.layer_kinds(c, period=4)))
