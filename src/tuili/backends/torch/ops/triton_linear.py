"""Launches products: which kernel a number of rows gets, by tables. Knows torch tensors and packed formats.

A row's result depends on the kernel, and that on the number of rows; in deterministic mode one kernel with one tile
does all, whose sums over k do not know how many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tuili.backends.torch.ops.kernels import matmul as kernels
from tuili.backends.torch.ops.packed import LANES, DenseWeight, PackedWeight
from tuili.backends.torch.ops.plain import product
from tuili.backends.torch.ops.rounding import num_parts


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens and outputs of a program, runs of a step, and how the compiler spreads them."""

    block_m: int
    block_n: int
    runs: int
    num_warps: int
    num_stages: int


# By the largest number of tokens. Above the last, weights are unpacked once and torch multiplies.
_TILES: tuple[tuple[int, Tile], ...] = (
    (16, Tile(16, 32, 4, 4, 3)),
    (64, Tile(64, 64, 2, 4, 3)),
    (256, Tile(64, 128, 2, 8, 3)),
)
_DETERMINISTIC = Tile(32, 64, 2, 4, 3)
_GEMV_BYTES = 4096  # of levels that a program reads at once
_UNPACK = Tile(0, 16, 16, 4, 1)
_DENSE_TILE = {2: (64, 128, 64, 4, 3), 4: (32, 32, 32, 4, 2)}  # by bytes of an element: m, n, k, warps, stages


def linear(
    x: Tensor,
    weight: DenseWeight | PackedWeight,
    bias: Tensor | None,
    deterministic: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """See Ops.linear."""
    if isinstance(weight, DenseWeight):
        dense = _dense if deterministic else product
        return dense(x, weight.weight, bias, out_dtype)
    assert x.stride(1) == 1
    if deterministic:
        return _gemm(x, weight, bias, _DETERMINISTIC, out_dtype)
    if x.shape[0] == 1:
        return _gemv(x, weight, bias, out_dtype)
    for most_tokens, tile in _TILES:
        if x.shape[0] <= most_tokens:
            return _gemm(x, weight, bias, tile, out_dtype)
    return product(x, unpacked(weight, x.dtype), bias, out_dtype)


def unpacked(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] in dtype; in float32 exact to the format's definition."""
    num_rows, num_cols = weight.shape
    out = torch.empty(weight.shape, dtype=dtype, device=weight.levels.device)
    num_runs, constants = _runs_and_constants(weight)
    grid = (num_parts(num_runs, _UNPACK.runs), num_parts(num_rows, _UNPACK.block_n))
    kernels.unpack_kernel[grid](
        out, *_planes(weight), num_rows, num_cols, num_runs, *_strides(weight), **constants, BLOCK_N=_UNPACK.block_n,
        RUNS=_UNPACK.runs, num_warps=_UNPACK.num_warps,
    )  # fmt: skip
    return out


def _gemv(x: Tensor, weight: PackedWeight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    num_rows, num_cols = weight.shape
    out = torch.empty((x.shape[0], num_rows), dtype=out_dtype, device=x.device)
    num_runs, constants = _runs_and_constants(weight)
    block_n = 4 if num_rows <= 4096 else 8
    runs = _GEMV_BYTES // block_n // int(constants["LANE"])
    kernels.gemv_kernel[(num_parts(num_rows, block_n), x.shape[0])](
        out, x, x if bias is None else bias, *_planes(weight), num_rows, num_cols, num_runs, x.stride(0),
        *_strides(weight), **constants, BLOCK_N=block_n, RUNS=runs, STAGES=2, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    return out


def _gemm(x: Tensor, weight: PackedWeight, bias: Tensor | None, tile: Tile, out_dtype: torch.dtype) -> Tensor:
    (num_tokens, _), (num_rows, num_cols) = x.shape, weight.shape
    out = torch.empty((num_tokens, num_rows), dtype=out_dtype, device=x.device)
    num_runs, constants = _runs_and_constants(weight)
    runs = tile.runs * LANES // int(constants["LANE"])
    grid = (num_parts(num_tokens, tile.block_m), num_parts(num_rows, tile.block_n))
    kernels.gemm_kernel[grid](
        out, x, x if bias is None else bias, *_planes(weight), num_tokens, num_rows, num_cols, num_runs, x.stride(0),
        *_strides(weight), **constants, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, RUNS=runs,
        HAS_BIAS=bias is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    assert x.stride(1) == weight.stride(1) == 1
    (num_tokens, num_cols), num_rows = x.shape, weight.shape[0]
    out = torch.empty((num_tokens, num_rows), dtype=out_dtype, device=x.device)
    block_m, block_n, block_k, num_warps, num_stages = _DENSE_TILE[x.element_size()]
    kernels.dense_kernel[(num_parts(num_tokens, block_m), num_parts(num_rows, block_n))](
        out, x, x if bias is None else bias, weight, num_tokens, num_rows, num_cols, x.stride(0), weight.stride(0),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, HAS_BIAS=bias is not None, num_warps=num_warps,
        num_stages=num_stages,
    )  # fmt: skip
    return out


def _planes(weight: PackedWeight) -> tuple[Tensor, ...]:
    """In the kernels' order; a plane that is not there is never read, but must be a pointer."""
    planes = (weight.levels, weight.high, weight.scales, weight.minimums, weight.factors, weight.min_factors)
    return tuple(weight.levels if plane is None else plane for plane in planes)


def _strides(weight: PackedWeight) -> tuple[int, ...]:
    planes = (weight.levels, weight.high, weight.scales, weight.factors)
    assert all(plane is None or plane.stride(1) == 1 for plane in weight.planes())
    assert weight.minimums is None or weight.minimums.stride() == weight.scales.stride()
    assert (
        weight.min_factors is None or weight.factors is None or weight.min_factors.stride() == weight.factors.stride()
    )
    return tuple(0 if plane is None else plane.stride(0) for plane in planes)


def _runs_and_constants(weight: PackedWeight) -> tuple[int, dict[str, int | bool]]:
    layout = weight.format
    lane = min(layout.group_size or LANES, LANES)
    constants: dict[str, int | bool] = {
        "LANE": lane,
        "NIBBLES": layout.levels == "nibbles",
        "HIGH_BITS": layout.high_bits,
        "GROUP_SIZE": layout.group_size,
        "ZERO": layout.zero,
        "FACTOR_GROUPS": layout.factor_groups,
        "MIN_SIGN": layout.min_sign,
    }
    return weight.levels.shape[1] // lane, constants
