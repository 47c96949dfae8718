"""Looks inside the layers with the reference backend: attention weights and hidden states of a short text.

Weights are dequantized one at a time as they are used, so that memory holds little more than the largest of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from tuili.backend import Batch, Float32, Int32
from tuili.backends.reference.cache import PagedCache
from tuili.backends.reference.forward import Forward
from tuili.errors import UnsupportedModelError
from tuili.models.features import unsupported_features
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import Tensor
from tuili.runtime.explain.facts import AttentionMap, Candidate, InsideFacts, LayerView
from tuili.weights.checkpoint import Checkpoint

MAX_TOKENS = 64  # a picture with more is a grey square
MAX_WEIGHT_BYTES = 2 << 30  # in the files' formats: dequantizing more takes too long for a picture


class Dequantized(Mapping[str, Float32]):
    """Weights as float32 arrays, each made when it is asked for; the last one is kept for who asks again."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._last: tuple[str, Float32] | None = None

    def __getitem__(self, name: str) -> Float32:
        if self._last is None or self._last[0] != name:
            self._last = None  # its memory is free before the next one's is needed
            self._last = (name, self._weights[name].dequantize())
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@dataclass(frozen=True, slots=True)
class _Text:
    """The fields of a Batch that Forward reads, for one text from its start."""

    positions: Int32
    query_start: Int32
    seq_lens: Int32
    block_tables: Int32
    slot_mapping: Int32
    block_copies: Int32

    @classmethod
    def of(cls, length: int, num_groups: int) -> _Text:
        positions = np.arange(length, dtype=np.int32)
        return cls(
            positions=positions,
            query_start=np.array([0, length], np.int32),
            seq_lens=np.array([length], np.int32),
            block_tables=np.zeros((num_groups, 1, 1), np.int32),
            slot_mapping=np.tile(positions, (num_groups, 1)),
            block_copies=np.zeros((0, 3), np.int32),
        )


def look_inside(checkpoint: Checkpoint, token_ids: Sequence[int], decode: Callable[[int], str]) -> InsideFacts:
    """Attention of the first, middle and last layer, the sharpest head, and what each layer would have said.

    Says why in `skipped` where the text is too long, the model too large, or beyond the reference backend.
    """
    reason = _reason_to_skip(checkpoint, len(token_ids))
    if reason is not None:
        return InsideFacts(skipped=reason)
    start = time.perf_counter()
    try:
        hidden, attention, logits = _run(checkpoint.spec, checkpoint.weights, token_ids)
    except UnsupportedModelError as error:
        return InsideFacts(skipped=str(error))
    views = tuple(_view(i, hidden[i][-1], hidden[i + 1][-1], logits[i], decode) for i in range(len(logits)))
    return InsideFacts(views, _maps(attention), time.perf_counter() - start)


def _reason_to_skip(checkpoint: Checkpoint, num_tokens: int) -> str | None:
    if num_tokens > MAX_TOKENS:
        return f"the prompt has {num_tokens} tokens, at most {MAX_TOKENS} can be drawn"
    if checkpoint.num_bytes > MAX_WEIGHT_BYTES:
        return f"{checkpoint.num_bytes / 2**30:.1f} GiB of weights are too many to dequantize for a picture"
    return None


def _run(
    spec: ModelSpec, weights: Mapping[str, Tensor], token_ids: Sequence[int]
) -> tuple[list[Float32], list[Float32], Float32]:
    """Hidden states [T, hidden] before the first and after each layer; attention [heads, T, T] of each; the last
    token's logits after each layer [layers, vocab].
    """
    from tuili.backends.reference.executor import SUPPORTED

    if missing := unsupported_features(spec, SUPPORTED):
        raise UnsupportedModelError(f"the reference backend does not implement {', '.join(missing)}")
    assert set(weights) == set(tensor_shapes(spec))
    hidden: list[Float32] = []
    attention: list[Float32] = []
    forward = Forward(
        spec,
        Dequantized(weights),
        len(token_ids),
        observe_hidden=lambda _, x: hidden.append(x),
        observe_attention=lambda _, found: attention.append(found),
    )
    cache = PagedCache(tuple(y.mixer for y in spec.layers if isinstance(y.mixer, AttentionSpec)))
    groups = cache.groups(len(token_ids))
    cache.allocate([1] * len(groups))
    text = _Text.of(len(token_ids), len(groups))
    forward.hidden(cast(Batch, text), np.array(token_ids, np.int32), cache)
    last = np.stack([forward.final_norm(x[-1:])[0] for x in hidden[1:]])
    return hidden, attention, forward.logits(last)


def _view(layer: int, before: Float32, now: Float32, logits: Float32, decode: Callable[[int], str]) -> LayerView:
    """Of one token, whose vector enters the layer as `before` and leaves it as `now`."""
    best = int(logits.argmax())
    spread = logits.astype(np.float64) - float(logits.max())
    probability = 1.0 / float(np.exp(spread).sum())
    return LayerView(
        layer=layer,
        norm=float(np.linalg.norm(now)),
        change=float(np.linalg.norm(now - before) / max(float(np.linalg.norm(now)), 1e-9)),
        guess=Candidate(best, decode(best), probability),
    )


def _maps(attention: Sequence[Float32]) -> tuple[AttentionMap, ...]:
    chosen = dict.fromkeys((0, len(attention) // 2, len(attention) - 1))
    maps = [AttentionMap(i, f"layer {i}, mean of heads", _rows(attention[i].mean(0))) for i in chosen]
    layer, head = _sharpest(attention)
    maps.append(
        AttentionMap(layer, f"layer {layer}, head {head}: looks back most sharply", _rows(attention[layer][head]))
    )
    return tuple(maps)


def _sharpest(attention: Sequence[Float32]) -> tuple[int, int]:
    """The head whose tokens look hardest at a single other one, the text's first apart, where many heads rest."""
    best, where = -1.0, (0, 0)
    for i, weights in enumerate(attention):
        others = weights[:, 2:, 1:] * np.tri(weights.shape[1], k=-1, dtype=np.float32)[2:, 1:]
        if others.size:
            scores = others.max(-1).mean(-1)
            if float(scores.max()) > best:
                best, where = float(scores.max()), (i, int(scores.argmax()))
    return where


def _rows(weights: Float32) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(w), 4) for w in row) for row in weights)
