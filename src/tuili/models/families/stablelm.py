"""StableLM 2: llama with LayerNorm and rotary positions in a quarter of each head; the 12B runs attention and MLP side
by side and norms every head of q and k with gains of its own."""

from __future__ import annotations

from dataclasses import replace

from tuili.models.families import gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("stablelm",), ("stablelm",)
_HEAD_NORMS = {
    "model.layers.{i}.self_attn.q_layernorm.norms.": "layers.{i}.q_norm.",
    "model.layers.{i}.self_attn.k_layernorm.norms.": "layers.{i}.k_norm.",
}
HF_NAMES, GGUF_NAMES = HF | _HEAD_NORMS, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    bias = c.flag("use_qkv_bias", c.flag("attention_bias", False))
    base = llama.attention(c, **llama.biases(bias, out=False))
    attention = replace(
        base,
        rope=c.rope(base.head_dim, default_part=0.25),
        qk_norm="each_head" if c.flag("qk_layernorm", c.flag("has_qk_norm", False)) else "none",
    )
    layer = LayerSpec(mixer=attention, mlp=llama.mlp(c), parallel=c.flag("use_parallel_residual", False))
    return llama.decoder(c, "stablelm", (layer,) * llama.num_layers(c), **gpt2.layer_norm(c))
