"""Every operation by Triton kernels: on CUDA, or on a CPU under Triton's interpreter. Needs triton installed.

Kernels compile when they are first launched, once per machine: a second or a few each, kept in Triton's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuili.backends.torch.ops import triton_attention, triton_heads, triton_linear, triton_rows
from tuili.backends.torch.ops.interpreter import is_interpreting, mend_interpreter
from tuili.backends.torch.ops.packed import DenseWeight, PackedWeight
from tuili.backends.torch.ops.protocol import (
    AttentionConstants,
    AttentionPlan,
    HeadConstants,
    HeadPositions,
    LayerCache,
    RowProducts,
)
from tuili.backends.torch.ops.triton_one_row import TritonRowProducts
from tuili.models.spec import Activation, NormKind

_HOPPER = (9, 132)  # capability and processors reckoned with where there is no GPU to ask


class TritonOps:
    """See the protocol.

    deterministic: a row's result depends on no other row, nor on how its prompt was cut: one kernel and one tile for
    every number of rows. Without it, attention does not know its company either, only a prompt's cuts; products do.
    """

    def __init__(self, device: torch.device, deterministic: bool) -> None:
        self._deterministic = deterministic
        self._capability, self._num_processors = _HOPPER
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._capability, self._num_processors = properties.major, properties.multi_processor_count
        self.row_products: RowProducts | None = None if deterministic else TritonRowProducts(self._num_processors)
        if is_interpreting():
            mend_interpreter()

    def write_cache(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        triton_heads.write_cache(cache, keys, values, slots)

    def rotate(
        self, queries: Tensor, keys: Tensor, heads: HeadConstants, positions: HeadPositions
    ) -> tuple[Tensor, Tensor]:
        return triton_heads.rotate(queries, keys, heads, positions)

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
        return triton_heads.rotate_and_write(queries, keys, values, heads, positions, cache, slots)

    def attend(self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, attention: AttentionConstants) -> Tensor:
        machine = (self._num_processors, self._capability)
        return triton_attention.attend(queries, cache, plan, attention, *machine, only_tiles=self._deterministic)

    def norm(self, x: Tensor, gain: Tensor, bias: Tensor | None, eps: float, kind: NormKind) -> Tensor:
        return triton_rows.norm(x, None, gain, bias, eps, kind, 1.0)[0]

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
        return triton_rows.norm(x, residual, gain, bias, eps, kind, scale)

    def activate(self, gate: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
        return triton_rows.activate(gate, up, activation)

    def linear(
        self,
        x: Tensor,
        weight: DenseWeight | PackedWeight,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        return triton_linear.linear(x, weight, bias, self._deterministic, out_dtype or x.dtype)

    def finish_logits(self, logits: Tensor, scale: float, softcap: float | None) -> Tensor:
        return triton_rows.finish_logits(logits, scale, softcap)
