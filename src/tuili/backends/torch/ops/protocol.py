"""What the model's modules ask of a device: attention over the paged cache, norms, rotations, matrix products.

Knows tensors and the plan of a step; not specs, batches or how anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tuili.backends.torch.ops.packed import DenseWeight, PackedWeight
from tuili.models.spec import Activation, NormKind

SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)  # of a cache whose heads carry a scale


@dataclass(frozen=True, slots=True)
class LayerCache:
    """A layer's keys and values in blocks: [num_blocks, block_size, num_kv_heads, head_dim], the last axis dense.

    The scales, float32 [num_blocks, block_size, num_kv_heads], are there where the dtype is one of SCALED_DTYPES:
    a value is its element times its head's scale.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.keys.shape == self.values.shape
        assert self.keys.dtype == self.values.dtype
        has_scales = self.keys.dtype in SCALED_DTYPES
        assert (self.key_scales is not None) == (self.value_scales is not None) == has_scales

    def planes(self) -> tuple[Tensor, ...]:
        """What a block consists of, the block being the first axis of each."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return self.keys, self.values, self.key_scales, self.value_scales


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Who attends to what in one step, for one cache group. Tensors lie on the device; numbers are known without it.

    Sequence s owns the queries query_start[s]:query_start[s + 1], which are the last of its seq_lens[s] positions;
    position p lies in block block_table[s, p // block_size]. Rows that only fill up a captured graph have seq_lens 0:
    their output is 0.
    """

    query_start: Tensor  # int32 [S + 1]
    seq_lens: Tensor  # int32 [S]
    block_table: Tensor  # int32 [S, max_blocks]; entries that no query can see may be -1
    max_query_len: int  # upper bounds
    max_seq_len: int
    num_decodes: int  # sequences of exactly one query

    @property
    def num_sequences(self) -> int:
        return self.seq_lens.shape[0]

    @property
    def is_decode(self) -> bool:
        return self.num_decodes == self.num_sequences


@dataclass(frozen=True, slots=True)
class AttentionConstants:
    """A layer's numbers. score = softcap(q k scale) - slope * distance; a key is seen at distances [0, window)."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # float32 [num_heads]
    alibi_slopes: Tensor | None = None  # float32 [num_heads]


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A norm of each head over head_dim. gain, bias: [head_dim], or [heads, head_dim] where every head has its own."""

    gain: Tensor
    bias: Tensor | None
    eps: float
    kind: NormKind


@dataclass(frozen=True, slots=True)
class HeadConstants:
    """What is done to queries and keys before they meet, as far as it belongs to the layer."""

    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None


@dataclass(frozen=True, slots=True)
class HeadPositions:
    """What is done to queries and keys because of where they stand, for the T tokens of a step.

    cos, sin: float32 [T, dim / 2] rotate the pairs (j, j + dim / 2) of a head's first dim values. factors: float32 [T]
    multiply the queries, before the rotation. All are contiguous.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    factors: Tensor | None = None


@dataclass(frozen=True, slots=True)
class RowEntry:
    """The RMS norm, without a bias, before a product of one row: of residual + scale * x, rounded, or of x."""

    gain: Tensor  # [K]
    eps: float
    residual: Tensor | None = None  # [1, K]
    scale: float = 1.0


class RowProducts(Protocol):
    """Products of one row with dense weights in one launch, with what stands around them."""

    def takes(self, weight: Tensor) -> bool:
        """Whether the matrix is one for it."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        entry: RowEntry | None = None,
        activation: Activation | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [1, K] through `entry`, times the transpose of weight [N, K], plus bias [N]: [1, N]; and the sum that
        was normed (x without a residual).

        activation: the first half of these, activated, times the second: [1, N / 2]. Only the end is rounded.
        """


class Ops(Protocol):
    """Inputs and outputs are in the model's dtype, sums and softmax in float32. Inputs may be slices of wider rows
    (the last axis has stride 1); outputs are new and contiguous unless said otherwise. Nothing waits for the device.
    """

    row_products: RowProducts | None  # where a row's result may depend on how many there are, and kernels run

    def write_cache(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """keys, values [T, num_kv_heads, head_dim] go to slots int32 [T] (block * block_size + offset), quantized as
        the cache is; a negative slot is skipped.
        """

    def rotate(
        self, queries: Tensor, keys: Tensor, heads: HeadConstants, positions: HeadPositions
    ) -> tuple[Tensor, Tensor]:
        """Norms, then factors, then rotation: queries [T, num_heads, head_dim], keys [T, num_kv_heads, head_dim]."""

    def rotate_and_write(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        heads: HeadConstants,
        positions: HeadPositions,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        """`rotate`, then `write_cache` of the keys and values; returns the queries."""

    def attend(self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, attention: AttentionConstants) -> Tensor:
        """Causal attention of queries [T, num_heads, head_dim] over the cache, which holds the step's own keys already.

        Query head h reads kv head h // (num_heads / num_kv_heads). Returns [T, num_heads, head_dim].
        """

    def norm(self, x: Tensor, gain: Tensor, bias: Tensor | None, eps: float, kind: NormKind) -> Tensor:
        """Norm of x [T, n] over its last axis."""

    def add_and_norm(
        self,
        x: Tensor,
        residual: Tensor,
        gain: Tensor,
        bias: Tensor | None,
        eps: float,
        kind: NormKind,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """The norm of s, and s = residual + scale * x rounded to the dtype: the norm is of the rounded sum."""

    def activate(self, gate: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
        """activation(gate) * up, or activation(gate) alone: [T, n]."""

    def linear(
        self,
        x: Tensor,
        weight: DenseWeight | PackedWeight,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x [T, K] times the transpose of weight [N, K], plus bias [N]: [T, N] in the input's dtype, or in float32 if
        out_dtype says so: the sums as they are, not rounded to the input's dtype on the way.
        """

    def finish_logits(self, logits: Tensor, scale: float, softcap: float | None) -> Tensor:
        """float32 softcap(logits * scale) of logits [R, V]; they themselves where nothing is to be done."""
