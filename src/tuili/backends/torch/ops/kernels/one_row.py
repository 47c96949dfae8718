"""A dense product of one row, with the norm before it and the activation behind it: as fast as weights can be read."""

import triton
import triton.language as tl

from tuili.backends.torch.ops.kernels.scalars import activated


@triton.jit
def _entered(x, residual, k, is_there, scale, HAS_RESIDUAL: tl.constexpr):
    """float32 of residual + scale * x, rounded to their dtype, or of x."""
    values = tl.load(x + k, mask=is_there, other=0.0)
    if HAS_RESIDUAL:
        before = tl.load(residual + k, mask=is_there, other=0.0).to(tl.float32)
        values = (before + scale * values.to(tl.float32)).to(x.dtype.element_ty)
    return values.to(tl.float32)


@triton.jit
def _weights(rows, k, is_row, is_there, IS_WHOLE: tl.constexpr):
    """float32 [BLOCK_N, BLOCK_K]. They are read once a step: what else is cached should stay."""
    places = rows[:, None] + k[None, :]
    if IS_WHOLE:
        values = tl.load(places, eviction_policy="evict_first")
    else:
        mask = is_row[:, None] & is_there[None, :]
        values = tl.load(places, mask=mask, other=0.0, eviction_policy="evict_first")
    return values.to(tl.float32)


@triton.jit
def one_row_kernel(
    out, total, x, residual, gain, bias, weight, num_outputs, num_cols, stride_weight, eps, scale,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PIECES: tl.constexpr, IS_WHOLE: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs. Grid: (parts of the outputs,).

    With ACTIVATION, output n is activation(row n) * row (num_outputs + n) of the product. The RMS norm's factor is one
    number for all of x, so sums are multiplied by it at the end: no weight waits for it.
    """
    program = tl.program_id(0)
    n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < num_outputs
    rows = weight + n.to(tl.int64) * stride_weight
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for piece in tl.static_range(PIECES):
        k = piece * BLOCK_K + tl.arange(0, BLOCK_K)
        is_there = k < num_cols
        weights = _weights(rows, k, is_row, is_there, IS_WHOLE)
        values = _entered(x, residual, k, is_there, scale, HAS_RESIDUAL)
        if HAS_NORM:
            squares += values * values
            values *= tl.load(gain + k, mask=is_there, other=0.0).to(tl.float32)
        acc += weights * values[None, :]
        if ACTIVATION != "":
            up_rows = weight + (n + num_outputs).to(tl.int64) * stride_weight
            up += _weights(up_rows, k, is_row, is_there, IS_WHOLE) * values[None, :]
    factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / num_cols + eps) if HAS_NORM else 1.0
    result = tl.sum(acc, 1) * factor
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)
    if ACTIVATION != "":
        other = tl.sum(up, 1) * factor
        if HAS_BIAS:
            other += tl.load(bias + num_outputs + n, mask=is_row, other=0.0).to(tl.float32)
        result = activated(result, ACTIVATION) * other
    tl.store(out + n, result.to(out.dtype.element_ty), mask=is_row)
    if HAS_RESIDUAL and program == 0:  # at last: loads do not move over stores
        for piece in tl.static_range(PIECES):
            k = piece * BLOCK_K + tl.arange(0, BLOCK_K)
            is_there = k < num_cols
            values = _entered(x, residual, k, is_there, scale, HAS_RESIDUAL)
            tl.store(total + k, values.to(total.dtype.element_ty), mask=is_there)
