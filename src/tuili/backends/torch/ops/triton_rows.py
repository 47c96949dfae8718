"""Launches the kernels over rows. Sizes of blocks depend on a row's length alone, so no row's sums depend on others."""

from __future__ import annotations

import torch
from torch import Tensor

from tuili.backends.torch.ops.kernels import rows as kernels
from tuili.backends.torch.ops.rounding import num_parts, power_of_two
from tuili.models.spec import Activation, NormKind

_PART = 1024  # elements of a row that one program takes where elements are independent


def norm(
    x: Tensor, residual: Tensor | None, gain: Tensor, bias: Tensor | None, eps: float, kind: NormKind, scale: float
) -> tuple[Tensor, Tensor]:
    """The norm of x [T, n], or of the sum with the residual, and that sum (x itself where there is no residual)."""
    assert x.stride(1) == gain.stride(0) == 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = power_of_two(x.shape[1])
    kernels.norm_kernel[(x.shape[0],)](
        out, total, x, x if residual is None else residual, gain, gain if bias is None else bias, x.stride(0),
        0 if residual is None else residual.stride(0), x.shape[1], eps, scale, BLOCK=block, IS_LAYER=kind == "layer",
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out, total


def activate(gate: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
    """See Ops.activate."""
    assert gate.stride(1) == 1
    assert up is None or up.stride(1) == 1
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    num_rows, size = gate.shape
    kernels.activation_kernel[(num_rows, num_parts(size, _PART))](
        out, gate, gate if up is None else up, gate.stride(0), 0 if up is None else up.stride(0), size,
        BLOCK=_PART, ACTIVATION=activation, HAS_UP=up is not None, num_warps=4,
    )  # fmt: skip
    return out


def finish_logits(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """See Ops.finish_logits."""
    assert logits.stride(1) == 1
    if logits.dtype == torch.float32 and scale == 1 and softcap is None:
        return logits
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    num_rows, size = logits.shape
    kernels.logits_kernel[(num_rows, num_parts(size, _PART))](
        out, logits, logits.stride(0), size, scale, float(softcap or 0), BLOCK=_PART, HAS_SOFTCAP=softcap is not None,
        num_warps=4,
    )  # fmt: skip
    return out
