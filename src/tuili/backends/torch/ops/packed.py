"""Weights as matrix products read them: dense, or packed into planes that a descriptor explains.

A packed row of K weights is a plane of levels, beside planes of scales: streams whose rows are 16-byte aligned, where
a file has structs of 18 to 210 bytes. weight = scale(k // group_size) * (level - zero), plus or minus its minimum.
Knows planes; file formats and how to fill planes from them are in packed_formats.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LANES = 32  # weights whose levels lie side by side, one to a byte


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFormat:
    """How planes make weights. Level k of a row, with lane j = k % 32:

    - levels "nibbles": bits 4 * (k // 32 % 2) of byte [k // 64 * 32 + j]; "int8", "float8": element [k].
    - high_bits h > 0: its bits from 4 up are bits h * (k // 32 % (8 / h)) of byte [k // (256 / h) * 32 + j] in `high`.
    - scales [N, K / group_size]; with factor_groups f > 0, integers times factors [N, K / group_size / f].
    - minimums likewise, times min_factors, of sign min_sign; 0: there are none.
    """

    name: str
    levels: Literal["nibbles", "int8", "float8"]
    group_size: int  # 0: one scale for the whole row
    high_bits: Literal[0, 1, 2] = 0
    zero: int = 0
    factor_groups: int = 0
    min_sign: Literal[-1, 0, 1] = 0

    @property
    def span(self) -> int:
        """Rows are padded to whole spans: what one run of 32 bytes of the coarsest plane covers."""
        if self.levels != "nibbles":
            return LANES
        return 256 // self.high_bits if self.high_bits else 2 * LANES


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """[N, K] in the model's dtype."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.weight.shape[0], self.weight.shape[1])

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """[N, K] in planes; see PackedFormat. Padding has scale 0."""

    format: PackedFormat
    shape: tuple[int, int]
    levels: Tensor  # uint8 [N, padded K / 2], or int8 or float8_e4m3fn [N, padded K]
    scales: Tensor  # float16 or float32, or with factors uint8 or int8: [N, groups]
    high: Tensor | None = None  # uint8 [N, padded K * high_bits / 8]
    minimums: Tensor | None = None  # float16, or with factors uint8: [N, groups]
    factors: Tensor | None = None  # float16 [N, groups / factor_groups]
    min_factors: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes() if plane is not None)

    def planes(self) -> tuple[Tensor | None, ...]:
        """In the order of the fields."""
        return (self.levels, self.scales, self.high, self.minimums, self.factors, self.min_factors)

    def to(self, device: torch.device) -> PackedWeight:
        """The same weight there. Copies wait for nothing where the planes are pinned."""
        moved = [None if plane is None else plane.to(device, non_blocking=True) for plane in self.planes()]
        levels, scales, *rest = moved
        assert levels is not None
        assert scales is not None
        return PackedWeight(self.format, self.shape, levels, scales, *rest)

    def rows(self, start: int, end: int) -> PackedWeight:
        """Rows [start, end), sharing memory."""
        levels, scales, *rest = [None if plane is None else plane[start:end] for plane in self.planes()]
        assert levels is not None
        assert scales is not None
        return PackedWeight(self.format, (end - start, self.shape[1]), levels, scales, *rest)


def unpack(weight: PackedWeight) -> Tensor:
    """float32 [N, K], exact to the format's definition."""
    layout, (num_rows, num_cols) = weight.format, weight.shape
    levels = _levels(weight).float() - layout.zero
    group_size = layout.group_size or levels.shape[1]
    scales = _scaled(weight.scales, weight.factors, layout.factor_groups)
    values = levels.view(num_rows, -1, group_size) * scales[:, :, None]
    if weight.minimums is not None:
        minimums = _scaled(weight.minimums, weight.min_factors, layout.factor_groups)
        values = values + layout.min_sign * minimums[:, :, None]
    return values.reshape(num_rows, -1)[:, :num_cols]


def _levels(weight: PackedWeight) -> Tensor:
    """[N, padded K]"""
    if weight.format.levels != "nibbles":
        return weight.levels
    levels = _fields(weight.levels, 4)
    if weight.high is not None:
        levels = levels | _fields(weight.high, weight.format.high_bits) << 4
    return levels


def _fields(plane: Tensor, bits: int) -> Tensor:
    """Bit fields of a plane [N, B], in the order of weights: uint8 [N, B * 8 / bits]."""
    lanes = plane.view(plane.shape[0], -1, 1, LANES)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=plane.device)[:, None]
    return ((lanes >> shifts) & ((1 << bits) - 1)).reshape(plane.shape[0], -1)


def _scaled(values: Tensor, factors: Tensor | None, groups: int) -> Tensor:
    return values.float() if factors is None else values.float() * factors.float().repeat_interleave(groups, 1)
