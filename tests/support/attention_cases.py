"""Steps of attention with random caches: mixed batches, and what they expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tuili.backends.torch.ops import AttentionConstants, AttentionPlan, LayerCache
from tuili.backends.torch.ops.plain import PlainOps

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Step:
    queries: Tensor
    keys: list[Tensor]  # of each sequence [seq_len, num_kv_heads, head_dim]
    values: list[Tensor]
    cache: LayerCache
    plan: AttentionPlan


def empty_cache(num_blocks: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> LayerCache:
    shape = (num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    scaled = dtype in (torch.int8, torch.float8_e4m3fn)
    scales = (torch.zeros(shape[:3]), torch.zeros(shape[:3])) if scaled else ()
    # What was never written is NaN, so that reading it shows; int8 has none.
    fill = 77.0 if dtype == torch.int8 else float("nan")
    return LayerCache(torch.full(shape, fill).to(dtype), torch.full(shape, fill).to(dtype), *scales)


def plan_of(query_lens: Sequence[int], seq_lens: Sequence[int], table: Tensor) -> AttentionPlan:
    return AttentionPlan(
        query_start=torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_table=table,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        num_decodes=sum(n == 1 for n in query_lens),
    )


def random_step(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Step:
    """Blocks lie in random order; the queries are a slice of wider rows."""
    torch.manual_seed(seed)
    width = max(-(-n // BLOCK_SIZE) for n in seq_lens) + 1
    table = torch.randperm(len(seq_lens) * width).view(-1, width).int()
    cache = empty_cache(table.numel(), num_kv_heads, head_dim, cache_dtype or dtype)
    keys, values = [], []
    for s, seq_len in enumerate(seq_lens):
        positions = torch.arange(seq_len)
        slots = (table[s][positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE).int()
        k, v = torch.randn(2, seq_len, num_kv_heads, head_dim).to(dtype)
        PlainOps().write_cache(cache, k, v, slots)
        keys.append(k)
        values.append(v)
        table[s, -(-seq_len // BLOCK_SIZE) :] = -1
    queries = torch.randn(sum(query_lens), num_heads + 3, head_dim).to(dtype)[:, :num_heads]
    return Step(queries, keys, values, cache, plan_of(query_lens, seq_lens, table))


def constants(
    num_heads: int, window: int | None = None, softcap: float | None = None, sinks: bool = False, alibi: bool = False
) -> AttentionConstants:
    generator = torch.manual_seed(1)
    return AttentionConstants(
        0.25,
        window,
        softcap,
        torch.randn(num_heads, generator=generator) if sinks else None,
        torch.rand(num_heads, generator=generator) if alibi else None,
    )
