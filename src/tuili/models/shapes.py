"""The weights a ModelSpec implies, by canonical name and shape: the contract between loaders and backends.

Matrices are [out_features, in_features]. Knows no files and no arrays.
"""

from __future__ import annotations

from tuili.errors import UnsupportedModelError
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def tensor_shapes(spec: ModelSpec) -> Shapes:
    """Every weight of `spec`: no more, no fewer.

    Raises UnsupportedModelError for members whose weights have no canonical form yet.
    """
    _refuse_undefined(spec)
    hidden, embedding = spec.hidden_size, spec.embedding_size or spec.hidden_size
    shapes: Shapes = {"embed_tokens.weight": (spec.vocab_size, embedding)}
    if spec.position == "learned":
        shapes["embed_positions.weight"] = (spec.max_position + spec.position_offset, hidden)
    if spec.embedding_norm:
        shapes |= _norm("embed_norm", hidden, spec)
    if embedding != hidden:
        shapes |= {"project_in.weight": (hidden, embedding), "project_out.weight": (embedding, hidden)}
    for i, layer in enumerate(spec.layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in _layer(layer, spec).items()}
    if spec.final_norm:
        shapes |= _norm("norm", hidden, spec)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, embedding)
    if spec.lm_head_bias:
        shapes["lm_head.bias"] = (spec.vocab_size,)
    return shapes


def _refuse_undefined(spec: ModelSpec) -> None:
    undefined = {
        "encoder": spec.encoder is not None,
        "relative_bias": any(isinstance(y.mixer, AttentionSpec) and y.mixer.relative_bias for y in spec.layers),
        "cross_attention": any(y.cross_attention for y in spec.layers),
    }
    undefined |= {type(y.mixer).__name__: True for y in spec.layers if not isinstance(y.mixer, AttentionSpec)}
    names = sorted(name for name, is_used in undefined.items() if is_used)
    if names:
        raise UnsupportedModelError(f"{spec.family}: no canonical weights are defined for {', '.join(names)}")


def _norm(name: str, size: int, spec: ModelSpec) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (size,)}
    return shapes | {f"{name}.bias": (size,)} if spec.norm_bias else shapes


def _linear(name: str, out_features: int, in_features: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out_features, in_features)}
    return shapes | {f"{name}.bias": (out_features,)} if bias else shapes


def _layer(layer: LayerSpec, spec: ModelSpec) -> Shapes:
    assert isinstance(layer.mixer, AttentionSpec)
    shapes: Shapes = {}
    for name in norm_names(layer):
        shapes |= _norm(name, spec.hidden_size, spec)
    shapes |= _attention(layer.mixer, spec.hidden_size)
    if isinstance(layer.mlp, MoeSpec):
        return shapes | _moe(layer.mlp, spec.hidden_size)
    return shapes | _mlp("", layer.mlp, spec.hidden_size)


def norm_names(layer: LayerSpec) -> tuple[str, ...]:
    """The norms of a layer, in the order it applies them."""
    if layer.parallel:
        return ("attn_norm", "mlp_norm")[: layer.parallel_norms]
    return {
        "pre": ("attn_norm", "mlp_norm"),
        "post": ("attn_post_norm", "mlp_post_norm"),
        "sandwich": ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"),
        "output": ("attn_post_norm", "mlp_post_norm"),
    }[layer.norms]


def _attention(a: AttentionSpec, hidden: int) -> Shapes:
    q_size, kv_size = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    shapes = _linear("q_proj", q_size, hidden, a.q_bias) | _linear("k_proj", kv_size, hidden, a.k_bias)
    shapes |= _linear("v_proj", kv_size, hidden, a.v_bias) | _linear("o_proj", hidden, q_size, a.out_bias)
    if a.qk_norm != "none":
        shapes["q_norm.weight"] = _head_norm(a, a.num_heads)
        shapes["k_norm.weight"] = _head_norm(a, a.num_kv_heads)
    if a.sinks:
        shapes["sinks.weight"] = (a.num_heads,)
    return shapes


def _head_norm(a: AttentionSpec, num_heads: int) -> Shape:
    """Of queries or keys; never with a bias."""
    if a.qk_norm == "each_head":
        return (num_heads, a.head_dim)
    return (num_heads * a.head_dim if a.qk_norm == "full" else a.head_dim,)


def _mlp(prefix: str, m: MlpSpec, hidden: int) -> Shapes:
    shapes = _linear(f"{prefix}gate_proj", m.intermediate_size, hidden, m.bias) if m.gated else {}
    shapes |= _linear(f"{prefix}up_proj", m.intermediate_size, hidden, m.bias)
    return shapes | _linear(f"{prefix}down_proj", hidden, m.intermediate_size, m.bias)


def _moe(m: MoeSpec, hidden: int) -> Shapes:
    """Experts are stacked: a leading expert axis on what one expert would have."""
    shapes: Shapes = {"router.weight": (m.num_experts, hidden)}
    shapes |= {name: (m.num_experts, *shape) for name, shape in _mlp("experts.", m.expert, hidden).items()}
    return shapes | _mlp("shared_expert.", m.shared_expert, hidden) if m.shared_expert else shapes
