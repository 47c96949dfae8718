"""From a spec and its weights to the modules of layers.py: every choice that a spec asks for is made here, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tuili.backends.torch.layers import (
    Add,
    AddNormed,
    Attention,
    DenseEmbedding,
    Embedding,
    Everywhere,
    FeedForward,
    GatedMlp,
    Head,
    HeadMaker,
    Heads,
    Join,
    Layer,
    LearnedPositions,
    Linear,
    Lookup,
    Mlp,
    Norm,
    Normed,
    PackedEmbedding,
    ParallelLayer,
    Pass,
    PostNormLayer,
    Projections,
    RowNormedHeads,
    SequentialLayer,
)
from tuili.backends.torch.ops import AttentionConstants, DenseWeight, HeadConstants, HeadNorm, Ops
from tuili.backends.torch.weights import Weight, WeightReader
from tuili.models.alibi import alibi_slopes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec


@dataclass(slots=True)
class Builder:
    """Builds modules front to back. `pending` is the factor of what is yet to be added to the residual, if anything."""

    spec: ModelSpec
    reader: WeightReader
    ops: Ops
    pending: float | None = None

    def layer(self, i: int) -> Layer:
        layer = self.spec.layers[i]
        name = f"layers.{i}."
        if layer.parallel:
            built = self._parallel(name, layer)
        elif layer.norms == "post":
            built = self._post(name, layer)
        else:
            built = self._sequential(name, layer)
        return built

    def join(self, norm: str | None) -> Join:
        """How to enter what comes next, behind the norm of that name."""
        if norm is None:
            return Pass() if self.pending is None else Add(self.pending)
        return Normed(self.norm(norm)) if self.pending is None else AddNormed(self.norm(norm), self.pending)

    def norm(self, name: str) -> Norm:
        gain = self.reader.vector(f"{name}.weight")
        assert gain is not None
        return Norm(self.ops, gain, self.reader.vector(f"{name}.bias"), self.spec.norm_eps, self.spec.norm)

    def linear(self, name: str) -> Linear:
        return Linear(self.ops, self.reader.matrix(name), self.reader.bias([name]))

    def embedding(self, table: Weight) -> Embedding:
        spec = self.spec
        stages: list[Callable[[Tensor, Tensor], Tensor]] = []
        if "project_in.weight" in self.reader:
            stages.append(Everywhere(self.linear("project_in")))
        if spec.position == "learned":
            positions = self._lookup(self.reader.matrix("embed_positions"), 1.0)
            stages.append(LearnedPositions(positions, spec.position_offset))
        if spec.embedding_norm:
            stages.append(Everywhere(self.norm("embed_norm")))
        return Embedding(self._lookup(table, spec.embedding_scale), tuple(stages))

    def head(self, table: Weight) -> Head:
        """`table` is the embedding's, for where both are one."""
        weight = table if self.spec.tie_word_embeddings else self.reader.matrix("lm_head")
        bias = self.reader.vector("lm_head.bias")
        # Half precision would make equals of many of the best logits.
        last = Linear(self.ops, weight, None if bias is None else bias.to(self.reader.dtype), torch.float32)
        return Head((self.linear("project_out"), last) if "project_out.weight" in self.reader else (last,))

    def _lookup(self, weight: Weight, scale: float) -> Lookup:
        if isinstance(weight, DenseWeight):
            return DenseEmbedding(weight.weight, scale)
        return PackedEmbedding(weight, scale, self.reader.dtype)

    def _projections(self, names: list[str]) -> Projections:
        groups = []
        for together, weight in self.reader.matrices(names):
            sizes = tuple(self.reader.num_rows(name) for name in together)
            groups.append((Linear(self.ops, weight, self.reader.bias(together)), sizes))
        return Projections(tuple(groups))

    def _sequential(self, name: str, layer: LayerSpec) -> Layer:
        is_input_normed, is_output_normed = layer.norms != "output", layer.norms != "pre"
        attention_join = self.join(f"{name}attn_norm" if is_input_normed else None)
        self.pending = layer.residual_scale
        mlp_join = self.join(f"{name}mlp_norm" if is_input_normed else None)
        return SequentialLayer(
            attention_join,
            self._attention(name, layer),
            self.norm(f"{name}attn_post_norm") if is_output_normed else None,
            mlp_join,
            self._mlp(name, layer),
            self.norm(f"{name}mlp_post_norm") if is_output_normed else None,
        )

    def _post(self, name: str, layer: LayerSpec) -> Layer:
        join, self.pending = self.join(None), None
        return PostNormLayer(
            join,
            self._attention(name, layer),
            AddNormed(self.norm(f"{name}attn_post_norm"), layer.residual_scale),
            self._mlp(name, layer),
            AddNormed(self.norm(f"{name}mlp_post_norm"), layer.residual_scale),
        )

    def _parallel(self, name: str, layer: LayerSpec) -> Layer:
        join = self.join(f"{name}attn_norm")
        self.pending = layer.residual_scale
        mlp_norm = self.norm(f"{name}mlp_norm") if layer.parallel_norms == 2 else None
        return ParallelLayer(join, self._attention(name, layer), mlp_norm, self._mlp(name, layer))

    def _attention(self, name: str, layer: LayerSpec) -> Attention:
        a = layer.mixer
        assert isinstance(a, AttentionSpec)
        has_slopes = self.spec.position == "alibi"
        slopes = alibi_slopes(a.num_heads, self.spec.alibi_scale)
        return Attention(
            self.ops,
            self._heads(name, a),
            self._head_constants(name, a),
            AttentionConstants(
                scale=a.scale,
                window=a.sliding_window,
                softcap=a.logit_softcap,
                sinks=self.reader.vector(f"{name}sinks.weight"),
                alibi_slopes=torch.tensor(slopes, dtype=torch.float32, device=self.reader.device)
                if has_slopes
                else None,
            ),
            self.linear(f"{name}o_proj"),
        )

    def _heads(self, name: str, a: AttentionSpec) -> HeadMaker:
        project = self._projections([f"{name}{which}_proj" for which in "qkv"])
        if a.qk_norm != "full":
            return Heads(project, a.head_dim)
        return RowNormedHeads(project, a.head_dim, self.norm(f"{name}q_norm"), self.norm(f"{name}k_norm"))

    def _head_constants(self, name: str, a: AttentionSpec) -> HeadConstants:
        if a.qk_norm not in ("head", "each_head"):
            return HeadConstants()
        query, key = (self.norm(f"{name}{which}_norm") for which in "qk")
        return HeadConstants(*(HeadNorm(n.gain, n.bias, n.eps, n.kind) for n in (query, key)))

    def _mlp(self, name: str, layer: LayerSpec) -> FeedForward:
        m = layer.mlp
        assert isinstance(m, MlpSpec)
        down = self.linear(f"{name}down_proj")
        if not m.gated:
            return Mlp(self.ops, self.linear(f"{name}up_proj"), m.activation, down)
        both = self._projections([f"{name}gate_proj", f"{name}up_proj"])
        return GatedMlp(self.ops, both, m.activation, down)
