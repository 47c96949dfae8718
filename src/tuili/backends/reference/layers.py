"""The parts of a transformer as functions of float32 arrays: norms, activations, rotation, softmax attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tuili.backend import Float32, Int32
from tuili.models.rope import attention_factor, inverse_frequencies
from tuili.models.spec import Activation, AttentionSpec, NormKind, QueryScaling, RopeSpec

QUERY_TILE = 128  # bounds the score matrix; rows are independent, so results do not depend on it

_erf = np.vectorize(math.erf, otypes=[np.float32])


def _silu(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp(-x) = inf makes x / inf = -0, the right limit
        y: Float32 = x / (1 + np.exp(-x))
    return y


def _gelu(x: Float32) -> Float32:
    y: Float32 = np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))
    return y


def _gelu_tanh(x: Float32) -> Float32:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    y: Float32 = np.float32(0.5) * x * (1 + np.tanh(inner))
    return y


def _relu(x: Float32) -> Float32:
    return np.maximum(x, 0)


def _relu2(x: Float32) -> Float32:
    return np.square(_relu(x))


ACTIVATIONS: Mapping[Activation, Callable[[Float32], Float32]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": _relu2,
}


def normalize(x: Float32, gain: Float32, bias: Float32 | None, eps: float, kind: NormKind) -> Float32:
    """RMSNorm or LayerNorm over the last axis."""
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    scaled: Float32 = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * gain
    return scaled if bias is None else scaled + bias


def softcap(x: Float32, cap: float) -> Float32:
    y: Float32 = np.tanh(x / np.float32(cap)) * np.float32(cap)
    return y


def rotation(rope: RopeSpec, positions: Int32, context_len: int) -> tuple[Float32, Float32]:
    """cos and sin [T, 1, dim / 2]. Angles are float32 products of float32 factors, as the models were trained with."""
    frequencies = np.array(inverse_frequencies(rope, context_len), np.float32)
    angles = (positions.astype(np.float32)[:, None, None] * frequencies).astype(np.float64)
    factor = attention_factor(rope, context_len)
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


def rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Rotates pairs (j, j + dim / 2) of the first dim values of each head; x: [T, heads, head_dim]."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def query_factors(scaling: QueryScaling, positions: Int32) -> Float32:
    """[T, 1, 1]"""
    turns = positions // scaling.original_max_position
    return (1 + scaling.beta * np.log1p(turns)).astype(np.float32)[:, None, None]


def attend(
    a: AttentionSpec,
    queries: Float32,
    keys: Float32,
    values: Float32,
    query_start: int,
    key_start: int,
    slopes: Float32 | None,
    sinks: Float32 | None,
) -> Float32:
    """Causal softmax attention of one sequence.

    queries: [n, num_heads, head_dim] at indices query_start + i of the text; keys, values: [m, num_kv_heads, head_dim]
    at indices key_start + j. Returns [n, num_heads * head_dim].
    """
    values = values.transpose(1, 0, 2)[:, None]  # [kv, 1, m, d]
    tiles = []
    for start in range(0, len(queries), QUERY_TILE):
        tile = queries[start : start + QUERY_TILE]
        weights = attention_weights(a, tile, keys, query_start + start, key_start, slopes, sinks)
        tiles.append((weights @ values).reshape(a.num_heads, len(tile), a.head_dim).transpose(1, 0, 2))
    return np.concatenate(tiles).reshape(len(queries), a.num_heads * a.head_dim)


def attention_weights(
    a: AttentionSpec,
    queries: Float32,
    keys: Float32,
    query_start: int,
    key_start: int,
    slopes: Float32 | None,
    sinks: Float32 | None,
) -> Float32:
    """How much each query takes of each value, as in `attend`: [num_kv_heads, heads per kv head, n, m], rows sum to 1
    (to less beside a sink).
    """
    n, shape = len(queries), (a.num_kv_heads, a.num_heads // a.num_kv_heads)
    grouped = queries.transpose(1, 0, 2).reshape(*shape, n, a.head_dim)  # head h reads kv head h // group
    scores = grouped @ keys.transpose(1, 2, 0)[:, None] * np.float32(a.scale)
    if a.logit_softcap is not None:
        scores = softcap(scores, a.logit_softcap)
    distance = (query_start + np.arange(n))[:, None] - (key_start + np.arange(len(keys)))
    if slopes is not None:
        scores = scores - slopes.reshape(*shape, 1, 1) * distance.astype(np.float32)
    hidden = distance < 0 if a.sliding_window is None else (distance < 0) | (distance >= a.sliding_window)
    return _softmax(np.where(hidden, np.float32(-np.inf), scores), sinks, shape)


def _softmax(scores: Float32, sinks: Float32 | None, shape: tuple[int, int]) -> Float32:
    """Over the last axis. A sink is one more score per head whose weight goes nowhere."""
    top = scores.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks.reshape(*shape, 1, 1))
    weights: Float32 = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.reshape(*shape, 1, 1) - top)
    weights /= total
    return weights
