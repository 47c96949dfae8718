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
from tuili.backends.torch.one_row import OneRow
from tuili.backends.torch.ops import AttentionConstants, DenseWeight, HeadConstants, HeadNorm, Ops
from tuili.backends.torch.shard import Shard
from tuili.backends.torch.sharded_layers import GatheredLinear, SharedLookup, SharedRowNorm, SummedLinear
from tuili.backends.torch.weights import Weight, WeightReader
from tuili.models.alibi import alibi_slopes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec


@dataclass(slots=True)
class Builder:
    """Builds modules front to back. `pending` is the factor of what is yet to be added to the residual, if anything.

    shard: what `spec` and `reader` have of a model that lies in several processes; None where they have all of it.
    one_row: what makes modules that compute a single row in another way, too.
    """

    spec: ModelSpec
    reader: WeightReader
    ops: Ops
    shard: Shard | None = None
    one_row: OneRow | None = None
    pending: float | None = None

    def begin_at(self, i: int) -> None:
        """What is pending where layer i begins; those before it are built elsewhere."""
        before = self.spec.layers[i - 1] if i else None
        self.pending = None if before is None or before.norms == "post" else before.residual_scale

    def layer(self, i: int) -> Layer:
        layer = self.spec.layers[i]
        if layer.parallel:
            built = self._parallel(i, layer)
        elif layer.norms == "post":
            built = self._post(i, layer)
        else:
            built = self._sequential(i, layer)
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
        lookup = self._lookup(table, spec.embedding_scale)
        if self.shard is None:
            return Embedding(lookup, tuple(stages))
        return Embedding(SharedLookup(lookup, self.shard.own_vocab, self.shard.ranks), tuple(stages))

    def head(self, table: Weight | None) -> Head:
        """`table` is the embedding's, for where both are one."""
        weight = table if self.spec.tie_word_embeddings else self.reader.matrix("lm_head")
        assert weight is not None
        bias = self.reader.vector("lm_head.bias")
        # Half precision would make equals of many of the best logits.
        own = Linear(self.ops, weight, None if bias is None else bias.to(self.reader.dtype), torch.float32)
        last: Callable[[Tensor], Tensor] = own
        if self.shard is not None:
            last = GatheredLinear(own, self.shard.vocab, self.shard.ranks)
        elif self.one_row is not None:
            last = self.one_row.linear(own, self.one_row.head)
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

    def _sequential(self, i: int, layer: LayerSpec) -> Layer:
        name = f"layers.{i}."
        is_input_normed, is_output_normed = layer.norms != "output", layer.norms != "pre"
        attention_join = self.join(f"{name}attn_norm" if is_input_normed else None)
        self.pending = layer.residual_scale
        mlp_join = self.join(f"{name}mlp_norm" if is_input_normed else None)
        built = SequentialLayer(
            attention_join,
            self._attention(i, layer),
            self.norm(f"{name}attn_post_norm") if is_output_normed else None,
            mlp_join,
            self._mlp(name, layer),
            self.norm(f"{name}mlp_post_norm") if is_output_normed else None,
        )
        return built if self.one_row is None else self.one_row.layer(built)

    def _post(self, i: int, layer: LayerSpec) -> Layer:
        name = f"layers.{i}."
        join, self.pending = self.join(None), None
        return PostNormLayer(
            join,
            self._attention(i, layer),
            AddNormed(self.norm(f"{name}attn_post_norm"), layer.residual_scale),
            self._mlp(name, layer),
            AddNormed(self.norm(f"{name}mlp_post_norm"), layer.residual_scale),
        )

    def _parallel(self, i: int, layer: LayerSpec) -> Layer:
        name = f"layers.{i}."
        join = self.join(f"{name}attn_norm")
        self.pending = layer.residual_scale
        mlp_norm = self.norm(f"{name}mlp_norm") if layer.parallel_norms == 2 else None
        return ParallelLayer(join, self._attention(i, layer), mlp_norm, self._mlp(name, layer))

    def _attention(self, i: int, layer: LayerSpec) -> Attention:
        a, name = layer.mixer, f"layers.{i}."
        assert isinstance(a, AttentionSpec)
        return Attention(
            self.ops,
            self._heads(i, a),
            self._head_constants(name, a),
            AttentionConstants(
                scale=a.scale,
                window=a.sliding_window,
                softcap=a.logit_softcap,
                sinks=self.reader.vector(f"{name}sinks.weight"),
                alibi_slopes=self._slopes(i, a),
            ),
            self._closing(f"{name}o_proj"),
        )

    def _slopes(self, i: int, a: AttentionSpec) -> Tensor | None:
        if self.spec.position != "alibi":
            return None
        share = None if self.shard is None else self.shard.layers[i]
        num_heads, own = (a.num_heads, range(a.num_heads)) if share is None else (share.num_heads, share.heads)
        slopes = alibi_slopes(num_heads, self.spec.alibi_scale)[own.start : own.stop]
        return torch.tensor(slopes, dtype=torch.float32, device=self.reader.device)

    def _closing(self, name: str) -> Callable[[Tensor], Tensor]:
        """A matrix whose columns are dealt out where the model is."""
        if self.shard is None:
            linear = self.linear(name)
            return linear if self.one_row is None else self.one_row.linear(linear, self.one_row.leaving)
        bias = self.reader.bias([name]) if self.shard.ranks.rank == 0 else None
        return SummedLinear(Linear(self.ops, self.reader.matrix(name), bias), self.shard.ranks)

    def _heads(self, i: int, a: AttentionSpec) -> HeadMaker:
        name = f"layers.{i}."
        project = self._projections([f"{name}{which}_proj" for which in "qkv"])
        if a.qk_norm != "full":
            return Heads(project, a.head_dim)
        query_norm, key_norm = self.norm(f"{name}q_norm"), self.norm(f"{name}k_norm")
        if self.shard is None:
            return RowNormedHeads(project, a.head_dim, query_norm, key_norm)
        share, ranks = self.shard.layers[i], self.shard.ranks
        widths = (share.num_heads * a.head_dim, share.num_kv_heads * a.head_dim)
        return RowNormedHeads(
            project,
            a.head_dim,
            SharedRowNorm(query_norm, widths[0], True, ranks),
            SharedRowNorm(key_norm, widths[1], share.counts_keys, ranks),
        )

    def _head_constants(self, name: str, a: AttentionSpec) -> HeadConstants:
        if a.qk_norm not in ("head", "each_head"):
            return HeadConstants()
        query, key = (self.norm(f"{name}{which}_norm") for which in "qk")
        return HeadConstants(*(HeadNorm(n.gain, n.bias, n.eps, n.kind) for n in (query, key)))

    def _mlp(self, name: str, layer: LayerSpec) -> FeedForward:
        m = layer.mlp
        assert isinstance(m, MlpSpec)
        down = self._closing(f"{name}down_proj")
        if not m.gated:
            return Mlp(self.ops, self.linear(f"{name}up_proj"), m.activation, down)
        both = self._projections([f"{name}gate_proj", f"{name}up_proj"])
        return GatedMlp(self.ops, both, m.activation, down)
