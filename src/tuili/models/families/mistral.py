"""Mistral: llama whose layers all look back over one sliding window; Ministral: some of them. GGUF: llamas."""

from __future__ import annotations

from dataclasses import replace

from tuili.errors import ModelFileError
from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES: tuple[str, ...] = ("mistral", "ministral")
GGUF_ARCHS: tuple[str, ...] = ()
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS = llama.GGUF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    window, count = c.optional_integer("sliding_window", 4096), llama.num_layers(c)
    kinds = c.layer_types(("full_attention" if window is None else "sliding_attention",) * count)
    if window is None and "sliding_attention" in kinds:
        raise ModelFileError("config: layer_types has sliding_attention; allowed: only with sliding_window")
    attention, mlp = llama.attention(c), llama.mlp(c)
    full = LayerSpec(mixer=attention, mlp=mlp)
    local = LayerSpec(mixer=replace(attention, sliding_window=window), mlp=mlp)
    return llama.decoder(c, "mistral", tuple(local if kind == "sliding_attention" else full for kind in kinds))
