"""OPT: GPT-2 with separate matrices, ReLU and positions that begin at 2. The 350M norms after each sum, and its
embeddings are narrower than the model."""

from __future__ import annotations

from tuili.models.families import gpt2, llama
from tuili.models.names import GGUF, GGUF_DERIVED, NameTable
from tuili.models.reader import ConfigReader
from tuili.models.spec import LayerSpec, ModelSpec

HF_TYPES: tuple[str, ...] = ("opt",)
GGUF_ARCHS: tuple[str, ...] = ()
_NAMES = {
    "embed_tokens.": "embed_tokens.",
    "embed_positions.": "embed_positions.",
    "project_in.": "project_in.",
    "project_out.": "project_out.",
    "final_layer_norm.": "norm.",
    "layers.{i}.self_attn.": "layers.{i}.",
    "layers.{i}.self_attn.out_proj.": "layers.{i}.o_proj.",
    "layers.{i}.fc1.": "layers.{i}.up_proj.",
    "layers.{i}.fc2.": "layers.{i}.down_proj.",
}


def _names(spec: ModelSpec) -> NameTable:
    place = "post_norm" if spec.layers[0].norms == "post" else "norm"
    norms = {
        "layers.{i}.self_attn_layer_norm.": f"layers.{{i}}.attn_{place}.",
        "layers.{i}.final_layer_norm.": f"layers.{{i}}.mlp_{place}.",
    }
    names = {f"decoder.{name}": ours for name, ours in (_NAMES | norms).items()}
    return gpt2.with_prefix(names, "model.")


HF_NAMES, GGUF_NAMES = _names, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
HF_IGNORED, GGUF_IGNORED = (), GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    bias, is_pre = c.flag("enable_bias", True), c.flag("do_layer_norm_before", True)
    attention = llama.attention(c, rope=None, **llama.biases(bias))
    layer = LayerSpec(mixer=attention, mlp=gpt2.plain_mlp(c, "relu", bias), norms="pre" if is_pre else "post")
    hidden = c.integer("hidden_size")
    embedding = c.integer("word_embed_proj_dim", hidden)
    return llama.decoder(
        c,
        "opt",
        (layer,) * llama.num_layers(c),
        position="learned",
        position_offset=2,
        embedding_size=embedding if embedding != hidden else None,
        final_norm=is_pre and not c.flag("_remove_final_layer_norm", False),
        **gpt2.layer_norm(c),
        **gpt2.tied(c),
    )
