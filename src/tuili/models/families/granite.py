"""Granite: llama with multipliers on the embedding, the scores, every residual sum and the logits."""

from __future__ import annotations

from tuili.models.families import llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("granite",), ("granite",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS = llama.GGUF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    scale = c.number("attention_multiplier", c.number("attention_scale", 1.0))
    layer = LayerSpec(
        mixer=llama.attention(c, scale=scale, **llama.biases(c.flag("attention_bias", False))),
        mlp=llama.mlp(c, bias=c.flag("mlp_bias", False)),
        residual_scale=c.number("residual_multiplier", 1.0),
    )
    return llama.decoder(
        c,
        "granite",
        (layer,) * llama.num_layers(c),
        embedding_scale=c.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / c.number("logits_scaling", c.number("logit_scale", 1.0)),  # GGUF: a divisor, too
    )
