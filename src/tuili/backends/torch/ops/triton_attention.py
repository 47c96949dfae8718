"""Launches attention: which kernels a step needs, with which tiles. Knows torch tensors and devices' tables.

A sequence with one query goes through the decode kernel whatever else is in the step, and all others through the
prefill kernel, so that nobody's result depends on company. Where even the way a prompt was cut must not show, the
prefill kernel does all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tuili.backends.torch.ops.kernels import attention as kernels
from tuili.backends.torch.ops.protocol import AttentionConstants, AttentionPlan, LayerCache
from tuili.backends.torch.ops.rounding import num_parts, power_of_two
from tuili.backends.torch_sizes.footprint import CHUNK, DECODE_SCRATCH

_RUN = 16  # chunks merged at once
_PROGRAMS_PER_PROCESSOR = 4  # of the decode kernel


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys of a tile, and how the compiler spreads them."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def prefill_tile(element_bytes: int, block_d: int, group: int, capability: int, is_scaled: bool) -> Tile:
    """By what fits into shared memory: 227 KiB on capability 9, about 100 KiB on consumer cards of 8.

    is_scaled: the cache is int8 or fp8, whose keys take registers on the way to the model's dtype.
    """
    if element_bytes == 4:
        tile = Tile(16, 32, 4, 1) if block_d > 128 else Tile(32, 32, 4, 1)
    elif block_d > 128:
        large = Tile(128, 32, 8, 3) if is_scaled else Tile(128, 64, 8, 2)
        tile = Tile(64, 32, 4, 2) if capability < 9 else large
    else:
        tile = Tile(64, 64, 4, 2) if capability < 9 else Tile(128, 64, 8, 3)
    return Tile(max(tile.block_m, power_of_two(group)), tile.block_n, tile.num_warps, tile.num_stages)


def decode_tile(element_bytes: int, block_d: int, group: int) -> Tile:
    """Rows are one kv head's queries, at least the 16 of a matrix instruction."""
    block_m = max(16, power_of_two(group))
    if element_bytes == 4:
        return Tile(block_m, 32, 4, 1 if block_d > 128 else 2)
    return Tile(block_m, 32 if block_d > 128 else 64, 4, 3)


def attend(
    queries: Tensor,
    cache: LayerCache,
    plan: AttentionPlan,
    attention: AttentionConstants,
    num_processors: int,
    capability: int,
    only_tiles: bool,
) -> Tensor:
    """See Ops.attend. `only_tiles`: the prefill kernel for every row."""
    assert queries.stride(2) == cache.keys.stride(3) == 1
    assert cache.keys.stride() == cache.values.stride()
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    launch = _Launch(queries, cache, plan, attention, out)
    if not only_tiles and plan.num_decodes:
        launch.decode(num_processors)
    if only_tiles or not plan.is_decode:
        launch.prefill(capability, skips_decodes=not only_tiles)
    return out


class _Launch:
    """The arguments that the kernels share."""

    def __init__(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, attention: AttentionConstants, out: Tensor
    ) -> None:
        self._queries, self._cache, self._plan, self._attention, self._out = queries, cache, plan, attention, out
        _, self._num_heads, self._head_dim = queries.shape
        self._num_kv_heads = cache.keys.shape[2]
        assert self._num_heads % self._num_kv_heads == 0
        self._group = self._num_heads // self._num_kv_heads
        self._block_d = max(16, power_of_two(self._head_dim))
        # A pointer that is not read must still be one.
        self._key_scales = queries if cache.key_scales is None else cache.key_scales
        self._value_scales = queries if cache.value_scales is None else cache.value_scales
        self._slopes = queries if attention.alibi_slopes is None else attention.alibi_slopes
        self._sinks = queries if attention.sinks is None else attention.sinks
        self._window = 0 if attention.window is None else attention.window
        assert cache.key_scales is None or self._key_scales.stride() == self._value_scales.stride()

    def prefill(self, capability: int, skips_decodes: bool) -> None:
        plan, a = self._plan, self._attention
        is_scaled = self._cache.key_scales is not None
        tile = prefill_tile(self._queries.element_size(), self._block_d, self._group, capability, is_scaled)
        tokens = tile.block_m // self._group
        grid = (self._queries.shape[0] // tokens + plan.num_sequences, self._num_kv_heads)
        kernels.prefill_kernel[grid](
            self._out, self._queries, plan.query_start, plan.seq_lens, plan.block_table,
            self._cache.keys, self._cache.values, self._key_scales, self._value_scales, self._sinks, self._slopes,
            plan.num_sequences, *self._queries.stride()[:2], *self._out.stride()[:2], plan.block_table.stride(0),
            *self._cache_strides(), float(a.scale), float(a.softcap or 0), self._window,
            **self._constants(tile), HAS_SINKS=a.sinks is not None, SKIPS_DECODES=skips_decodes,
            # Where a prompt is cut decides which tiles are masked, and so which products could be fused with sums.
            enable_fp_fusion=skips_decodes,
        )  # fmt: skip

    def decode(self, num_processors: int) -> None:
        """As many sequences at a time as DECODE_SCRATCH holds the sums of, at least one."""
        max_chunks = num_parts(self._plan.max_seq_len, CHUNK)
        if self._attention.window is not None:
            max_chunks = min(max_chunks, num_parts(self._attention.window, CHUNK) + 1)
        one = self._num_heads * max_chunks
        count = self._plan.num_sequences
        count = min(count, max(1, DECODE_SCRATCH // (4 * one * (self._head_dim + 2))))
        shape = (count, self._num_heads, max_chunks)
        sums = torch.empty((*shape, self._head_dim), dtype=torch.float32, device=self._out.device)
        masses = torch.empty((*shape, 2), dtype=torch.float32, device=self._out.device)
        for first in range(0, self._plan.num_sequences, count):
            self._decode(first, sums[: self._plan.num_sequences - first], masses, num_processors)

    def _decode(self, first: int, sums: Tensor, masses: Tensor, num_processors: int) -> None:
        """The sequences from `first` on, one for each place in `sums`."""
        plan, a = self._plan, self._attention
        count, _, max_chunks, _ = sums.shape
        query_start = plan.query_start[first : first + count + 1]
        seq_lens, table = plan.seq_lens[first : first + count], plan.block_table[first : first + count]
        tile = decode_tile(self._queries.element_size(), self._block_d, self._group)
        parts = min(max_chunks, max(1, num_processors * _PROGRAMS_PER_PROCESSOR // (self._num_kv_heads * count)))
        kernels.decode_kernel[(self._num_kv_heads, count, parts)](
            sums, masses, self._queries, query_start, seq_lens, table,
            self._cache.keys, self._cache.values, self._key_scales, self._value_scales, self._slopes,
            max_chunks, *self._queries.stride()[:2], table.stride(0),
            *self._cache_strides(), float(a.scale), float(a.softcap or 0), self._window,
            **self._constants(tile), CHUNK=CHUNK,
        )  # fmt: skip
        kernels.merge_kernel[(self._num_heads, count)](
            self._out, sums, masses, query_start, seq_lens, self._sinks, max_chunks,
            *self._out.stride()[:2], self._window, HEAD_DIM=self._head_dim, BLOCK_D=self._block_d, CHUNK=CHUNK,
            RUN=_RUN, HAS_SINKS=a.sinks is not None, HAS_WINDOW=a.window is not None, num_warps=2,
        )  # fmt: skip

    def _cache_strides(self) -> tuple[int, ...]:
        scales = self._cache.key_scales
        return (*self._cache.keys.stride()[:3], *((0, 0, 0) if scales is None else scales.stride()))

    def _constants(self, tile: Tile) -> dict[str, int | bool]:
        a = self._attention
        return {
            "GROUP": self._group,
            "HEAD_DIM": self._head_dim,
            "BLOCK_D": self._block_d,
            "BLOCK_SIZE": self._cache.keys.shape[1],
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "SCALED": self._cache.key_scales is not None,
            "HAS_SOFTCAP": a.softcap is not None,
            "HAS_ALIBI": a.alibi_slopes is not None,
            "HAS_WINDOW": a.window is not None,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        }
