"""What a ModelSpec asks of a backend beyond a plain decoder, by name, so that a backend can refuse by name.

A plain decoder needs no entry here: pre-norm RMSNorm, causal softmax attention with rotary positions (MHA, GQA or
MQA, any head size), a gated SiLU MLP, tied or separate heads.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec


def unsupported_features(spec: ModelSpec, supported: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The features `spec` needs and `supported` lacks, sorted; named by spec field: "qk_norm=head", "mixer=MlaSpec"."""
    return tuple(sorted(set(_model_features(spec)) - supported))


def _model_features(spec: ModelSpec) -> Iterator[str]:
    if spec.kind != "decoder":
        yield f"kind={spec.kind}"
    if spec.norm != "rms":
        yield f"norm={spec.norm}"
    if spec.position != "rope":
        yield f"position={spec.position}"
    flags = {
        "encoder": spec.encoder is not None,
        "norm_bias": spec.norm_bias,
        "final_norm=False": not spec.final_norm,
        "embedding_size": spec.embedding_size not in (None, spec.hidden_size),
        "embedding_scale": spec.embedding_scale != 1.0,
        "embedding_norm": spec.embedding_norm,
        "logit_scale": spec.logit_scale != 1.0,
        "logit_softcap": spec.logit_softcap is not None,
        "lm_head_bias": spec.lm_head_bias,
    }
    yield from (name for name, is_used in flags.items() if is_used)
    for layer in set(spec.layers):
        yield from _layer_features(layer)


def _layer_features(layer: LayerSpec) -> Iterator[str]:
    if layer.norms != "pre":
        yield f"norms={layer.norms}"
    if layer.parallel:
        yield "parallel"
    if layer.parallel_norms != 1:
        yield f"parallel_norms={layer.parallel_norms}"
    if layer.residual_scale != 1.0:
        yield "residual_scale"
    if layer.cross_attention is not None:
        yield "cross_attention"
    if isinstance(layer.mixer, AttentionSpec):
        yield from _attention_features(layer.mixer)
    else:
        yield f"mixer={type(layer.mixer).__name__}"
    if isinstance(layer.mlp, MoeSpec):
        yield "mlp=MoeSpec"
    else:
        yield from _mlp_features(layer.mlp)


def _attention_features(a: AttentionSpec) -> Iterator[str]:
    flags = {
        "q_bias": a.q_bias,
        "k_bias": a.k_bias,
        "v_bias": a.v_bias,
        "out_bias": a.out_bias,
        f"qk_norm={a.qk_norm}": a.qk_norm != "none",
        "query_scaling": a.query_scaling is not None,
        "sliding_window": a.sliding_window is not None,
        "attention.logit_softcap": a.logit_softcap is not None,
        "sinks": a.sinks,
        "causal=False": not a.causal,
        "relative_bias": a.relative_bias is not None,
        "rope=None": a.rope is None,
    }
    yield from (name for name, is_used in flags.items() if is_used)


def _mlp_features(m: MlpSpec) -> Iterator[str]:
    if m.activation != "silu":
        yield f"activation={m.activation}"
    if not m.gated:
        yield "gated=False"
    if m.bias:
        yield "mlp.bias"
