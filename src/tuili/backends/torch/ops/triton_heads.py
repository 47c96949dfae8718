"""Launches what happens to heads before attention; one kernel does all of it, or only the cache's part."""

from __future__ import annotations

import torch
from torch import Tensor

from tuili.backends.torch.ops.kernels.heads import heads_kernel
from tuili.backends.torch.ops.protocol import HeadConstants, HeadNorm, HeadPositions, LayerCache
from tuili.backends.torch.ops.rounding import num_parts, power_of_two

_BLOCK_T = 4


def rotate(queries: Tensor, keys: Tensor, heads: HeadConstants, positions: HeadPositions) -> tuple[Tensor, Tensor]:
    """See Ops.rotate."""
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    out_keys = torch.empty(keys.shape, dtype=keys.dtype, device=keys.device)
    _launch(out, out_keys, queries, keys, None, heads, positions, None, None)
    return out, out_keys


def rotate_and_write(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: HeadConstants,
    positions: HeadPositions,
    cache: LayerCache,
    slots: Tensor,
) -> Tensor:
    """See Ops.rotate_and_write."""
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    _launch(out, None, queries, keys, values, heads, positions, cache, slots)
    return out


def write_cache(cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """See Ops.write_cache."""
    _launch(None, None, None, keys, values, HeadConstants(), HeadPositions(), cache, slots)


def _launch(
    out_queries: Tensor | None,
    out_keys: Tensor | None,
    queries: Tensor | None,
    keys: Tensor,
    values: Tensor | None,
    heads: HeadConstants,
    positions: HeadPositions,
    cache: LayerCache | None,
    slots: Tensor | None,
) -> None:
    num_tokens, num_kv_heads, head_dim = keys.shape
    num_heads = 0 if queries is None else queries.shape[1]
    assert all(x is None or x.stride(2) == 1 for x in (queries, keys, values))
    half = head_dim // 2 if positions.cos is None else positions.cos.shape[1]
    rest = head_dim - 2 * half
    assert all(x is None or x.is_contiguous() for x in (positions.cos, positions.sin, positions.factors))
    grid = (num_parts(num_tokens, _BLOCK_T), num_heads + num_kv_heads * (1 if cache is None else 2))
    heads_kernel[grid](
        *(keys if x is None else x for x in (out_queries, out_keys, queries, keys, values)),
        *(keys if x is None else x for x in (positions.cos, positions.sin, positions.factors)),
        *_norm_tensors(heads.query_norm, keys), *_norm_tensors(heads.key_norm, keys),
        *_cache_tensors(cache, keys), keys if slots is None else slots, num_tokens, num_heads, num_kv_heads,
        *((0, 0) if queries is None else queries.stride()[:2]), *keys.stride()[:2],
        *((0, 0) if values is None else values.stride()[:2]),
        _gain_stride(heads.query_norm), _gain_stride(heads.key_norm),
        0.0 if heads.query_norm is None else heads.query_norm.eps,
        0.0 if heads.key_norm is None else heads.key_norm.eps,
        *_cache_strides(cache),
        HALF=half, BLOCK_HALF=power_of_two(half), REST=rest, BLOCK_REST=power_of_two(max(rest, 1)),
        BLOCK_T=_BLOCK_T, HAS_ROTATION=positions.cos is not None, HAS_FACTORS=positions.factors is not None,
        QUERY_NORM=_kind(heads.query_norm), KEY_NORM=_kind(heads.key_norm),
        HAS_QUERY_BIAS=heads.query_norm is not None and heads.query_norm.bias is not None,
        HAS_KEY_BIAS=heads.key_norm is not None and heads.key_norm.bias is not None,
        WRITES=cache is not None, BLOCK_SIZE=1 if cache is None else cache.keys.shape[1],
        TOP=_top_level(cache), num_warps=1,
    )  # fmt: skip


def _kind(norm: HeadNorm | None) -> str:
    return "none" if norm is None else norm.kind


def _norm_tensors(norm: HeadNorm | None, unread: Tensor) -> tuple[Tensor, Tensor]:
    if norm is None:
        return unread, unread
    assert norm.gain.is_contiguous()
    assert norm.bias is None or (norm.bias.is_contiguous() and norm.bias.shape == norm.gain.shape)
    return norm.gain, unread if norm.bias is None else norm.bias


def _gain_stride(norm: HeadNorm | None) -> int:
    """From one head's gains to the next one's: 0 where all have the same."""
    return 0 if norm is None or norm.gain.dim() == 1 else norm.gain.stride(0)


def _cache_tensors(cache: LayerCache | None, unread: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if cache is None:
        return unread, unread, unread, unread
    if cache.key_scales is None or cache.value_scales is None:
        return cache.keys, cache.values, unread, unread
    return cache.keys, cache.values, cache.key_scales, cache.value_scales


def _cache_strides(cache: LayerCache | None) -> tuple[int, ...]:
    if cache is None:
        return (0, 0, 0, 0, 0, 0)
    assert cache.keys.stride() == cache.values.stride()
    if cache.key_scales is None or cache.value_scales is None:
        return (*cache.keys.stride()[:3], 0, 0, 0)
    assert cache.key_scales.stride() == cache.value_scales.stride()
    return (*cache.keys.stride()[:3], *cache.key_scales.stride())


def _top_level(cache: LayerCache | None) -> float:
    if cache is None or cache.key_scales is None:
        return 0.0
    return 127.0 if cache.keys.dtype == torch.int8 else torch.finfo(cache.keys.dtype).max
