"""Launches products of one row. Tiles depend on the matrix and the device alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tuili.backends.torch.ops.kernels import one_row as kernels
from tuili.backends.torch.ops.protocol import RowEntry
from tuili.backends.torch.ops.rounding import num_parts, power_of_two
from tuili.models.spec import Activation

_PIECE_BYTES = 4096  # of a row that are read at once
_MAX_PIECES = 8  # unrolled
_ROWS = (8, 4, 2)  # of the matrix that a program has, if enough programs are left for each processor
_PROGRAMS = 3
_PROGRAM_BYTES = 65536  # of the matrix, at most: registers
_WARP_BYTES = 4096  # 128 to a thread


@dataclass(frozen=True, slots=True)
class TritonRowProducts:
    """See RowProducts."""

    num_processors: int

    def takes(self, weight: Tensor) -> bool:
        piece = _PIECE_BYTES // weight.element_size()
        return weight.stride(1) == 1 and weight.shape[1] <= _MAX_PIECES * piece

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        entry: RowEntry | None = None,
        activation: Activation | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert self.takes(weight)
        assert x.shape == (1, weight.shape[1])
        assert x.stride(1) == 1
        residual = None if entry is None else entry.residual
        assert residual is None or (residual.stride(1) == 1 and residual.shape == x.shape)
        num_cols, share = weight.shape[1], 1 if activation is None else 2
        num_outputs = weight.shape[0] // share
        out = torch.empty((1, num_outputs), dtype=out_dtype or x.dtype, device=x.device)
        total = x if residual is None else torch.empty_like(x)
        block_k = min(power_of_two(num_cols), _PIECE_BYTES // weight.element_size())
        block_n = self._outputs(num_outputs, share, weight.stride(0) * weight.element_size())
        read = block_n * share * block_k * weight.element_size()
        kernels.one_row_kernel[(num_parts(num_outputs, block_n),)](
            out, total, x, x if residual is None else residual, x if entry is None else entry.gain,
            x if bias is None else bias, weight, num_outputs, num_cols, weight.stride(0),
            0.0 if entry is None else entry.eps, 1.0 if entry is None else entry.scale, BLOCK_N=block_n,
            BLOCK_K=block_k, PIECES=num_parts(num_cols, block_k),
            IS_WHOLE=num_cols % block_k == 0 and num_outputs % block_n == 0, HAS_NORM=entry is not None,
            HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, ACTIVATION=activation or "",
            num_warps=power_of_two(min(8, max(1, read // _WARP_BYTES))),
        )  # fmt: skip
        return out, total

    def _outputs(self, num_outputs: int, share: int, row_bytes: int) -> int:
        """Of one program."""
        enough = num_outputs // (_PROGRAMS * self.num_processors)
        fitting = (n // share for n in _ROWS if n // share <= enough and n * row_bytes <= _PROGRAM_BYTES)
        return next(fitting, 1)
