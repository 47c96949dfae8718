"""The modules of a layer: each does one thing, and which of them a model has is settled when it is built.

What flows from one to the next is (x, residual): a sum that is yet to be made, so that adding it and the norm that
follows are one operation. Knows operations and weights; specs are read in building.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tuili.backends.torch.ops import (
    AttentionConstants,
    AttentionPlan,
    DenseWeight,
    HeadConstants,
    HeadPositions,
    LayerCache,
    Ops,
    PackedWeight,
    unpack,
)
from tuili.backends.torch.weights import rows_of
from tuili.models.spec import Activation, NormKind

Flow = tuple[Tensor, Tensor | None]  # x, and what it is to be added to


@dataclass(frozen=True, slots=True)
class LayerStep:
    """What a step has for the attention of one layer."""

    positions: HeadPositions
    plan: AttentionPlan
    slots: Tensor  # int32 [T]
    cache: LayerCache


@dataclass(frozen=True, slots=True)
class Linear:
    ops: Ops
    weight: DenseWeight | PackedWeight
    bias: Tensor | None
    out_dtype: torch.dtype | None = None  # None: the input's

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias, self.out_dtype)


@dataclass(frozen=True, slots=True)
class Projections:
    """Several products of one input; those whose weights have one format are one matrix."""

    groups: tuple[tuple[Linear, tuple[int, ...]], ...]  # a matrix, and how its rows are shared out

    def __call__(self, x: Tensor) -> list[Tensor]:
        parts: list[Tensor] = []
        for linear, sizes in self.groups:
            parts += linear(x).split(sizes, -1)
        return parts


@dataclass(frozen=True, slots=True)
class DenseEmbedding:
    weight: Tensor
    scale: float

    def __call__(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight)
        return rows if self.scale == 1.0 else rows * self.scale


@dataclass(frozen=True, slots=True)
class PackedEmbedding:
    weight: PackedWeight
    scale: float
    dtype: torch.dtype

    def __call__(self, ids: Tensor) -> Tensor:
        return (unpack(rows_of(self.weight, ids)) * self.scale).to(self.dtype)


Lookup = Callable[[Tensor], Tensor]  # ids int32 [T] -> rows [T, width]


@dataclass(frozen=True, slots=True)
class Embedding:
    """Token ids to hidden states: rows of a table, then whatever a model does to them before its first layer."""

    lookup: Lookup
    stages: tuple[Callable[[Tensor, Tensor], Tensor], ...]  # (x, positions) -> x

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.lookup(ids)
        for stage in self.stages:
            x = stage(x, positions)
        return x


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    table: Lookup
    offset: int

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions + self.offset)


@dataclass(frozen=True, slots=True)
class Everywhere:
    """A stage that does the same at every position."""

    apply: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.apply(x)


@dataclass(frozen=True, slots=True)
class Head:
    """Normed hidden states to float32 logits."""

    stages: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


@dataclass(frozen=True, slots=True)
class Norm:
    ops: Ops
    gain: Tensor
    bias: Tensor | None
    eps: float
    kind: NormKind

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.norm(x, self.gain, self.bias, self.eps, self.kind)

    def added(self, x: Tensor, residual: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The norm of residual + scale * x, and that sum."""
        return self.ops.add_and_norm(x, residual, self.gain, self.bias, self.eps, self.kind, scale)


class Join(Protocol):
    """What enters the next part, and the residual beside it."""

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing to add, no norm."""

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return x, x


@dataclass(frozen=True, slots=True)
class Add:
    scale: float

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        assert residual is not None
        total = residual + x if self.scale == 1.0 else residual + self.scale * x
        return total, total


@dataclass(frozen=True, slots=True)
class Normed:
    """The norm of x, to which nothing is to be added."""

    norm: Norm

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.norm(x), x


@dataclass(frozen=True, slots=True)
class AddNormed:
    norm: Norm
    scale: float

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        assert residual is not None
        return self.norm.added(x, residual, self.scale)


class HeadMaker(Protocol):
    """Queries, keys and values [T, heads, head_dim] of x [T, hidden]."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Heads:
    project: Projections
    head_dim: int

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.shaped(self.project(x))

    def shaped(self, parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        return queries, keys, values


@dataclass(frozen=True, slots=True)
class RowNormedHeads:
    """Queries and keys each normed over all their heads as one row."""

    project: Projections
    head_dim: int
    query_norm: Callable[[Tensor], Tensor]
    key_norm: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.project(x)
        parts = (self.query_norm(queries), self.key_norm(keys), values)
        queries, keys, values = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        return queries, keys, values


@dataclass(frozen=True, slots=True)
class Attention:
    ops: Ops
    heads: HeadMaker
    head_constants: HeadConstants
    constants: AttentionConstants
    out: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, step: LayerStep) -> Tensor:
        return self.mixed(*self.heads(x), step)

    def mixed(self, queries: Tensor, keys: Tensor, values: Tensor, step: LayerStep) -> Tensor:
        queries = self.ops.rotate_and_write(
            queries, keys, values, self.head_constants, step.positions, step.cache, step.slots
        )
        return self.out(self.ops.attend(queries, step.cache, step.plan, self.constants).flatten(1))


class FeedForward(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class GatedMlp:
    ops: Ops
    gate_and_up: Projections
    activation: Activation
    down: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x)
        return self.down(self.ops.activate(gate, up, self.activation))


@dataclass(frozen=True, slots=True)
class Mlp:
    ops: Ops
    up: Linear
    activation: Activation
    down: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.ops.activate(self.up(x), None, self.activation))


class Layer(Protocol):
    def __call__(self, x: Tensor, residual: Tensor | None, step: LayerStep) -> Flow: ...


@dataclass(frozen=True, slots=True)
class SequentialLayer:
    """Attention, then the MLP, each behind its join; what leaves them is normed where the layer says so."""

    attention_join: Join
    attention: Attention
    attention_post: Norm | None
    mlp_join: Join
    mlp: FeedForward
    mlp_post: Norm | None

    def __call__(self, x: Tensor, residual: Tensor | None, step: LayerStep) -> Flow:
        entered, residual = self.attention_join(x, residual)
        x = self.attention(entered, step)
        x = x if self.attention_post is None else self.attention_post(x)
        entered, residual = self.mlp_join(x, residual)
        x = self.mlp(entered)
        return (x if self.mlp_post is None else self.mlp_post(x)), residual


@dataclass(frozen=True, slots=True)
class PostNormLayer:
    """Every sum is normed: the norm goes on, not the sum."""

    join: Join
    attention: Attention
    attention_norm: AddNormed
    mlp: FeedForward
    mlp_norm: AddNormed

    def __call__(self, x: Tensor, residual: Tensor | None, step: LayerStep) -> Flow:
        entered, _ = self.join(x, residual)
        middle, _ = self.attention_norm(self.attention(entered, step), entered)
        leaving, _ = self.mlp_norm(self.mlp(middle), middle)
        return leaving, None


@dataclass(frozen=True, slots=True)
class ParallelLayer:
    """Attention and MLP read the same hidden states, through one norm or one each."""

    join: Join
    attention: Attention
    mlp_norm: Norm | None
    mlp: FeedForward

    def __call__(self, x: Tensor, residual: Tensor | None, step: LayerStep) -> Flow:
        entered, residual = self.join(x, residual)
        mlp_entered = entered if self.mlp_norm is None else self.mlp_norm(residual)
        return self.attention(entered, step) + self.mlp(mlp_entered), residual
