"""OLMo 2: llama that norms what a sublayer gives instead of what it takes, and all of q and k."""

from __future__ import annotations

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED, HF_SANDWICH
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("olmo2",), ("olmo2",)
HF_NAMES, GGUF_NAMES = HF | HF_SANDWICH, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    attention = llama.attention(c, qk_norm="full", **llama.biases(c.flag("attention_bias", False)))
    layer = LayerSpec(mixer=attention, mlp=llama.mlp(c), norms="output")
    return llama.decoder(c, "olmo2", (layer,) * llama.num_layers(c), norm_eps=c.number("rms_norm_eps", 1e-5))
