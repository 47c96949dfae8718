"""Kernels over rows: norms with the residual sum before them, activation times up, soft-capped logits."""

import triton
import triton.language as tl

from tuili.backends.torch.ops.kernels.scalars import activated, tanh


@triton.jit
def norm_kernel(
    out, total, x, residual, gain, bias, stride_x, stride_residual, size, eps, scale,
    BLOCK: tl.constexpr, IS_LAYER: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One row: total = residual + scale * x, rounded, and its norm. Grid: (rows,). out and total are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    is_there = i < size
    values = tl.load(x + row * stride_x + i, mask=is_there, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        before = tl.load(residual + row * stride_residual + i, mask=is_there, other=0.0).to(tl.float32)
        rounded = (before + scale * values).to(total.dtype.element_ty)
        tl.store(total + row * size + i, rounded, mask=is_there)
        values = rounded.to(tl.float32)
    if IS_LAYER:
        values = tl.where(is_there, values - tl.sum(values, 0) / size, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(values * values, 0) / size + eps)
    result = values * factor * tl.load(gain + i, mask=is_there, other=0.0).to(tl.float32)
    if HAS_BIAS:
        result += tl.load(bias + i, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * size + i, result.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def activation_kernel(
    out, gate, up, stride_gate, stride_up, size,
    BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, HAS_UP: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, parts of a row)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = i < size
    result = activated(tl.load(gate + row * stride_gate + i, mask=is_there, other=0.0).to(tl.float32), ACTIVATION)
    if HAS_UP:
        result = result * tl.load(up + row * stride_up + i, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * size + i, result.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def logits_kernel(out, logits, stride, size, scale, softcap, BLOCK: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Grid: (rows, parts of a row)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = i < size
    values = tl.load(logits + row * stride + i, mask=is_there, other=0.0).to(tl.float32) * scale
    if HAS_SOFTCAP:
        values = tanh(values / softcap) * softcap
    tl.store(out + row * size + i, values, mask=is_there)
