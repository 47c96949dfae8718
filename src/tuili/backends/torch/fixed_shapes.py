"""Plain operations whose rows do not depend on their company: products are always of the same shapes.

A library chooses how it adds up a product by the product's shape. So rows are multiplied TILE at a time, a short tile
filled up, and queries attend in tiles that begin at multiples of TILE in their text, over keys up to the tile's end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuili.backends.torch.ops import AttentionConstants, AttentionPlan, DenseWeight, LayerCache, PackedWeight
from tuili.backends.torch.ops.plain import PlainOps

TILE = 32


class FixedShapeOps(PlainOps):
    """Slower, above all for few rows."""

    def linear(
        self,
        x: Tensor,
        weight: DenseWeight | PackedWeight,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        linear = super().linear
        parts = [linear(_filled(x[start : start + TILE]), weight, bias, out_dtype) for start in range(0, len(x), TILE)]
        return torch.cat(parts)[: len(x)] if parts else linear(x, weight, bias, out_dtype)

    def attend(self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, attention: AttentionConstants) -> Tensor:
        """Tile by tile: in each the queries lie where their positions are, the others are zero and thrown away."""
        out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        bounds, lengths = plan.query_start.tolist(), plan.seq_lens.tolist()
        for s, length in enumerate(lengths):
            if not length:
                continue
            begin, end = bounds[s], bounds[s + 1]
            first = length - (end - begin)  # position of the first query
            for start in range(first // TILE * TILE, length, TILE):
                low, high = max(start, first), min(start + TILE, length)
                rows = slice(begin + low - first, begin + high - first)
                tile = queries.new_zeros((TILE, *queries.shape[1:]))
                tile[low - start : high - start] = queries[rows]
                found = super().attend(tile, *_whole_tile(cache, plan.block_table[s], start + TILE, high), attention)
                out[rows] = found[low - start : high - start]
        return out


def _filled(x: Tensor) -> Tensor:
    return x if len(x) == TILE else torch.cat((x, x.new_zeros((TILE - len(x), x.shape[1]))))


def _whole_tile(cache: LayerCache, table: Tensor, end: int, length: int) -> tuple[LayerCache, AttentionPlan]:
    """Positions [0, end) of one text as a block of its own; those from `length` on, which nobody sees, are zero."""
    places = torch.arange(length)
    block_size = cache.keys.shape[1]
    blocks = table.long()[places // block_size]
    at = (blocks.clamp(min=0), places % block_size)

    def gathered(plane: Tensor | None) -> Tensor | None:
        if plane is None:
            return None
        whole = plane.new_zeros((1, end, *plane.shape[2:]))
        whole[0, :length] = plane[at]
        whole[0, :length][blocks < 0] = 0  # given back behind a window: another text's by now, which may be anything
        return whole

    keys, values, *scales = map(gathered, (cache.keys, cache.values, cache.key_scales, cache.value_scales))
    assert keys is not None
    assert values is not None
    numbers = (torch.tensor([0, TILE]), torch.tensor([end]), torch.zeros((1, 1), dtype=torch.int32))
    return LayerCache(keys, values, *scales), AttentionPlan(*numbers, TILE, end, 0)
