"""SmolLM3: llama whose every fourth layer has no positions; those layers may have a window."""

from __future__ import annotations

from dataclasses import replace

from tuili.errors import ModelFileError
from tuili.models.families import gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import AttentionSpec, LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("smollm3",), ("smollm3",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS = llama.GGUF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    attention = llama.attention(c, default_theta=2_000_000.0, **llama.biases(c.flag("attention_bias", False)))
    mlp = llama.mlp(c, bias=c.flag("mlp_bias", False))
    layers = tuple(LayerSpec(mixer=mixer, mlp=mlp) for mixer in _mixers(c, attention))
    return llama.decoder(c, "smollm3", layers, **gpt2.tied(c))


def _mixers(c: ConfigReader, attention: AttentionSpec) -> list[AttentionSpec]:
    count, period = llama.num_layers(c), c.integer("no_rope_layer_interval", 4)
    has_rope = c.layer_flags("no_rope_layers", tuple((i + 1) % period != 0 for i in range(count)))
    window = c.optional_integer("sliding_window")
    window = window if c.flag("use_sliding_window", False) else None
    kinds = c.layer_types(
        tuple("sliding_attention" if window is not None and not rotates else "full_attention" for rotates in has_rope)
    )
    if window is None and "sliding_attention" in kinds:
        raise ModelFileError("config: layer_types has sliding_attention; allowed: only with use_sliding_window")
    return [
        replace(
            attention,
            rope=attention.rope if rotates else None,
            sliding_window=window if kind == "sliding_attention" else None,
        )
        for rotates, kind in zip(has_rope, kinds, strict=True)
    ]
