"""Command R: attention and MLP side by side on one LayerNorm without bias, rotated pairs side by side, scaled logits.
Large ones norm every head of q and k with gains of its own."""

from __future__ import annotations

from tuili.models.families import gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import AttentionSpec, LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("cohere",), ("command-r",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS = dict.fromkeys(("q_proj", "k_proj", "q_norm", "k_norm"), "unpermute_rope")
GGUF_TRANSFORMS = HF_TRANSFORMS
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    has_norms = c.flag("use_qk_norm", c.flag("has_qk_norm", False))
    attention = llama.attention(
        c,
        default_theta=500_000.0,
        qk_norm="each_head" if has_norms else "none",
        **llama.biases(c.flag("attention_bias", False)),
    )
    return decoder(c, "cohere", (attention,) * llama.num_layers(c))


def decoder(c: ConfigReader, family: str, mixers: tuple[AttentionSpec, ...]) -> ModelSpec:
    mlp = llama.mlp(c)
    layers = tuple(LayerSpec(mixer=mixer, mlp=mlp, parallel=True) for mixer in mixers)
    scale = c.number("logit_scale", 0.0625)
    return llama.decoder(c, family, layers, logit_scale=scale, **gpt2.layer_norm(c, bias=False), **gpt2.tied(c))
