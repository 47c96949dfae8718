"""Ministral 3: Mistral with YaRN, and queries that grow with their position beyond the trained context."""

from __future__ import annotations

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec, QueryScaling

HF_TYPES, GGUF_ARCHS = ("ministral3",), ("mistral3",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS = llama.GGUF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    beta = c.optional_number("llama_4_scaling_beta")
    scaling = (
        None if beta is None else QueryScaling(beta=beta, original_max_position=c.integer("llama_4_scaling_length"))
    )
    window = c.optional_integer("sliding_window")
    attention = llama.attention(c, sliding_window=window, query_scaling=scaling)
    layer = LayerSpec(mixer=attention, mlp=llama.mlp(c))
    return llama.decoder(c, "ministral3", (layer,) * llama.num_layers(c), norm_eps=c.number("rms_norm_eps", 1e-5))
