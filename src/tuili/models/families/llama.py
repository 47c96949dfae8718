"""Llama 1 to 3.2, SmolLM2 and all that is shaped like them: the model every other family differs from."""

from __future__ import annotations

from typing import Any

from tuili.errors import ModelFileError
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import MAX_LAYERS, ConfigReader
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec

HF_TYPES, GGUF_ARCHS = ("llama",), ("llama",)
HF_NAMES, GGUF_NAMES = HF, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS = {"q_proj": "unpermute_rope", "k_proj": "unpermute_rope"}
HF_IGNORED, GGUF_IGNORED = HF_DERIVED, GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    layer = LayerSpec(
        mixer=attention(c, **biases(bias)),
        mlp=mlp(c, bias=c.flag("mlp_bias", False)),
    )
    return decoder(c, "llama", (layer,) * num_layers(c))


def num_layers(c: ConfigReader) -> int:
    return c.integer("num_hidden_layers", high=MAX_LAYERS)


def attention(
    c: ConfigReader, default_head_dim: int | None = None, default_theta: float = 10_000.0, **changes: Any
) -> AttentionSpec:
    """Grouped-query attention with rotary positions; `changes` are AttentionSpec fields that differ."""
    heads, hidden = c.integer("num_attention_heads"), c.integer("hidden_size")
    kv_heads = c.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelFileError(f"config: num_key_value_heads is {kv_heads}; allowed: a divisor of {heads} heads")
    head_dim = c.integer("head_dim", default_head_dim or max(hidden // heads, 1))
    fields: dict[str, Any] = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "scale": head_dim**-0.5,
        "rope": c.rope(head_dim, default_theta),
    }
    return AttentionSpec(**fields | changes)


def biases(has_bias: bool, *, out: bool = True) -> dict[str, bool]:
    """AttentionSpec fields: biases of all projections or of none, the output's apart."""
    return {"q_bias": has_bias, "k_bias": has_bias, "v_bias": has_bias, "out_bias": has_bias and out}


def mlp(c: ConfigReader, **changes: Any) -> MlpSpec:
    """A gated MLP; `changes` are MlpSpec fields that differ."""
    if "intermediate_size" not in changes:
        changes["intermediate_size"] = c.integer("intermediate_size")
    if "activation" not in changes:
        changes["activation"] = c.activation("hidden_act", "silu")
    return MlpSpec(**changes)


def decoder(
    c: ConfigReader, family: str, layers: tuple[LayerSpec, ...], default_max_position: int | None = None, **changes: Any
) -> ModelSpec:
    """A decoder of `layers`; `changes` are ModelSpec fields that differ."""
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": c.integer("vocab_size"),
        "hidden_size": c.integer("hidden_size"),
        "max_position": c.integer("max_position_embeddings", default_max_position),
        "layers": layers,
        "norm_eps": c.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": c.flag("tie_word_embeddings", False),
    }
    return ModelSpec(**fields | changes)
