"""Every operation in plain torch: runs on any device, defines what the kernels must compute, and is slow.

Only the parts that are nobody's bottleneck without kernels (products, norms) are as good as torch makes them; attention
gathers each sequence's keys, which asks the device for lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tuili.backends.torch.ops.packed import DenseWeight, PackedWeight, unpack
from tuili.backends.torch.ops.protocol import (
    AttentionConstants,
    AttentionPlan,
    HeadConstants,
    HeadNorm,
    HeadPositions,
    LayerCache,
    RowProducts,
)
from tuili.models.spec import Activation, NormKind

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}

_HAS_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
_WIDENED = 1 << 22  # elements of a weight that are wider at one time


class PlainOps:
    """See the protocol. Without state."""

    row_products: RowProducts | None = None

    def write_cache(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        places = slots.long()
        if (places < 0).any():
            kept = places >= 0
            keys, values, places = keys[kept], values[kept], places[kept]
        block_size = cache.keys.shape[1]
        at = (places // block_size, places % block_size)
        planes = ((cache.keys, cache.key_scales, keys), (cache.values, cache.value_scales, values))
        for plane, scales, heads in planes:
            if scales is None:
                plane[at] = heads.to(plane.dtype)
            else:
                plane[at], scales[at] = quantize_heads(heads, plane.dtype)

    def rotate(
        self, queries: Tensor, keys: Tensor, heads: HeadConstants, positions: HeadPositions
    ) -> tuple[Tensor, Tensor]:
        return (
            _placed(queries, heads.query_norm, positions, positions.factors),
            _placed(keys, heads.key_norm, positions, None),
        )

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
        queries, keys = self.rotate(queries, keys, heads, positions)
        self.write_cache(cache, keys, values, slots)
        return queries

    def attend(self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, attention: AttentionConstants) -> Tensor:
        out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        lengths = plan.seq_lens.tolist()
        for s, (begin, end) in enumerate(pairwise(plan.query_start.tolist())):
            if end > begin and lengths[s] > 0:
                keys, values, first = _gathered(cache, plan, s, end - begin, lengths[s], attention.window)
                start = lengths[s] - (end - begin)
                out[begin:end] = _attend_sequence(queries[begin:end], keys, values, start, first, attention)
        return out

    def norm(self, x: Tensor, gain: Tensor, bias: Tensor | None, eps: float, kind: NormKind) -> Tensor:
        return _normed(x.float(), gain, bias, eps, kind).to(x.dtype)

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
        total = (residual.float() + scale * x.float()).to(x.dtype)
        return self.norm(total, gain, bias, eps, kind), total

    def activate(self, gate: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
        inner = ACTIVATIONS[activation](gate.float())
        return (inner if up is None else inner * up.float()).to(gate.dtype)

    def linear(
        self,
        x: Tensor,
        weight: DenseWeight | PackedWeight,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        dense = weight.weight if isinstance(weight, DenseWeight) else unpack(weight).to(x.dtype)
        return product(x, dense, bias, out_dtype or x.dtype)

    def finish_logits(self, logits: Tensor, scale: float, softcap: float | None) -> Tensor:
        scaled = logits.float() if scale == 1 else logits.float() * scale
        return scaled if softcap is None else torch.tanh(scaled / softcap) * softcap


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """As Ops.linear, of a weight [N, K] in x's dtype."""
    if out_dtype == x.dtype:
        return F.linear(x, weight, bias)
    if x.is_cuda and _HAS_OUT_DTYPE and len(x):
        out = torch.mm(x, weight.T, out_dtype=out_dtype)
    else:
        out = torch.empty((len(x), len(weight)), dtype=out_dtype, device=x.device)
        step = max(1, _WIDENED // weight.shape[1])
        for start in range(0, len(weight) if len(x) else 0, step):
            part = slice(start, start + step)
            out[:, part] = F.linear(x.to(out_dtype), weight[part].to(out_dtype))
    return out if bias is None else out + bias


def quantize_heads(heads: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Heads [..., D] as dtype times a float32 scale [...]: the largest element becomes the dtype's largest."""
    top = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scales = heads.float().abs().amax(-1) / top
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    levels = (heads.float() * inverse[..., None]).clamp(-top, top)
    return (levels.round() if dtype == torch.int8 else levels).to(dtype), scales


def _placed(x: Tensor, norm: HeadNorm | None, positions: HeadPositions, factors: Tensor | None) -> Tensor:
    """x [T, heads, head_dim], each step in float32 and rounded once at the end."""
    values = x.float()
    if norm is not None:
        values = _normed(values, norm.gain, norm.bias, norm.eps, norm.kind)
    if factors is not None:
        values = values * factors[:, None, None]
    if positions.cos is not None and positions.sin is not None:
        half = positions.cos.shape[-1]
        cos, sin = positions.cos[:, None], positions.sin[:, None]
        first, second, rest = values[..., :half], values[..., half : 2 * half], values[..., 2 * half :]
        values = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
    return values.to(x.dtype)


def _normed(x: Tensor, gain: Tensor, bias: Tensor | None, eps: float, kind: NormKind) -> Tensor:
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain.float()
    return scaled if bias is None else scaled + bias.float()


def _gathered(
    cache: LayerCache, plan: AttentionPlan, s: int, num_queries: int, seq_len: int, window: int | None
) -> tuple[Tensor, Tensor, int]:
    """float32 keys and values [m, num_kv_heads, head_dim] that sequence s can see, and the first one's position."""
    first = 0 if window is None else max(0, seq_len - num_queries - window + 1)
    positions = torch.arange(first, seq_len, device=cache.keys.device)
    block_size = cache.keys.shape[1]
    at = (plan.block_table[s].long()[positions // block_size], positions % block_size)
    keys, values = cache.keys[at].float(), cache.values[at].float()
    if cache.key_scales is not None and cache.value_scales is not None:
        keys, values = keys * cache.key_scales[at][..., None], values * cache.value_scales[at][..., None]
    return keys, values, first


def _attend_sequence(
    queries: Tensor, keys: Tensor, values: Tensor, query_start: int, key_start: int, a: AttentionConstants
) -> Tensor:
    (n, num_heads, head_dim), num_kv_heads = queries.shape, keys.shape[1]
    grouped = queries.float().transpose(0, 1).reshape(num_kv_heads, -1, n, head_dim)
    scores = grouped @ keys.permute(1, 2, 0)[:, None] * a.scale  # [kv, group, n, m]
    if a.softcap is not None:
        scores = torch.tanh(scores / a.softcap) * a.softcap
    rows = torch.arange(query_start, query_start + n, device=keys.device)
    distance = rows[:, None] - torch.arange(key_start, key_start + len(keys), device=keys.device)
    if a.alibi_slopes is not None:
        scores = scores - a.alibi_slopes.view(num_kv_heads, -1, 1, 1) * distance.float()
    hidden = distance < 0 if a.window is None else (distance < 0) | (distance >= a.window)
    weights = _softmax(scores.masked_fill(hidden, float("-inf")), a.sinks)
    out = weights @ values.transpose(0, 1)[:, None]
    return out.reshape(num_heads, n, head_dim).transpose(0, 1).to(queries.dtype)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last axis. A sink is one more score per head whose weight goes nowhere."""
    if sinks is None:
        return torch.softmax(scores, -1)
    column = sinks.float().view(scores.shape[0], -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, column), -1), -1)[..., :-1]
