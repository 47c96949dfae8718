"""Mistral: llama whose layers all look back over one sliding window. In GGUF it is a llama."""

from __future__ import annotations

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES: tuple[str, ...] = ("mistral",)
GGUF_ARCHS: tuple[str, ...] = ()
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS = llama.GGUF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    window = c.optional_integer("sliding_window", 4096)
    layer = LayerSpec(mixer=llama.attention(c, sliding_window=window), mlp=llama.mlp(c))
    return llama.decoder(c, "mistral", (layer,) * llama.num_layers(c))
