"""BLOOM: ALiBi instead of positions, a norm behind the embedding, q, k and v fused head by head.

Older checkpoints leave out the "transformer." before every name. ALiBi sets no limit; models saw 2048 tokens.
"""

from __future__ import annotations

from tuili.models.families import gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("bloom",), ("bloom",)
NAMES = {
    "word_embeddings.": "embed_tokens.",
    "word_embeddings_layernorm.": "embed_norm.",
    "ln_f.": "norm.",
    "h.{i}.input_layernorm.": "layers.{i}.attn_norm.",
    "h.{i}.post_attention_layernorm.": "layers.{i}.mlp_norm.",
    "h.{i}.self_attention.query_key_value.": "layers.{i}.qkv_groups_proj.",
    "h.{i}.self_attention.dense.": "layers.{i}.o_proj.",
    "h.{i}.mlp.dense_h_to_4h.": "layers.{i}.up_proj.",
    "h.{i}.mlp.dense_4h_to_h.": "layers.{i}.down_proj.",
}
HF_NAMES, GGUF_NAMES = gpt2.with_prefix(NAMES, "transformer."), GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = (), GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    attention = llama.attention(c, rope=None, **llama.biases(c.flag("attention_bias", True)))
    layer = LayerSpec(mixer=attention, mlp=gpt2.plain_mlp(c, "gelu_tanh", c.flag("mlp_bias", True)))
    return llama.decoder(
        c,
        "bloom",
        (layer,) * llama.num_layers(c),
        default_max_position=2048,
        position="alibi",
        embedding_norm=True,
        **gpt2.layer_norm(c),
        **gpt2.tied(c),
    )
