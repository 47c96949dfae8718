"""What each of the processes that share a model takes of its own GPU: weights, a cache's blocks, room for steps.

Dealt out by the functions that the torch backend loads with. Arithmetic over a description; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuili.backend import CacheGroup
from tuili.backends.torch_sizes.division import Cut, cuts, divide, own_spec
from tuili.backends.torch_sizes.footprint import (
    CACHE_BYTES,
    LEAST_CONTEXT,
    MAX_GRAPH_LOGIT_BYTES,
    WORK_SHARE,
    StepFootprint,
    StepSize,
    asked_host_layers,
    cache_groups,
    kept_bytes,
    layers_that_fit,
)
from tuili.backends.torch_sizes.stages import is_of_stage, stage_ends, stage_of
from tuili.config import KvCacheDtype
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant import BY_NAME

_FLOAT_BYTES = 4
_MAX_GRAPH_ROWS = 256
_ROW_BIASES = ("o_proj.bias", "down_proj.bias")  # added once, by the first of those who share a layer

Stored = Mapping[str, tuple[str, tuple[int, ...]]]  # weight -> format name and shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """How a model is dealt out: so many GPUs share each layer, and so many stages have some of the layers each."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One process's part. `spec` has its widths and all layers, of which it has `layers`, and everybody's vocabulary.

    Weights in bytes: of each of its layers, of what else is there in any case, and of an embedding that is not the
    head. With layers on the host, the first of `layers`, the embedding is there, too.
    """

    spec: ModelSpec
    stage: int
    layers: range
    has_head: bool
    layer_bytes: tuple[int, ...]
    rest_bytes: int
    embedding_bytes: int
    item_bytes: int
    num_host: int = 0

    @property
    def weight_bytes(self) -> int:
        """On the GPU."""
        return sum(self.layer_bytes[self.num_host :]) + self.rest_bytes + (0 if self.num_host else self.embedding_bytes)

    def cache_groups(self, dtype: KvCacheDtype, block_size: int) -> tuple[CacheGroup, ...]:
        """What PagedCache.groups will answer there, where not all layers are on the host."""
        own = range(self.layers.start + self.num_host, self.layers.stop)
        return cache_groups(self._mixers, CACHE_BYTES.get(dtype, self.item_bytes), block_size, own)

    def host_cache_groups(self, dtype: KvCacheDtype, block_size: int) -> tuple[CacheGroup, ...]:
        """Of the layers on the host."""
        own = range(self.layers.start, self.layers.start + self.num_host)
        return cache_groups(self._mixers, CACHE_BYTES.get(dtype, self.item_bytes), block_size, own)

    def host_weight_bytes(self, stored: Stored) -> int:
        """Of its first layers and the embedding on the host, where nothing stays packed."""
        if not self.num_host:
            return 0
        own = range(self.layers.start, self.layers.start + self.num_host)
        names = [name for name in stored if is_of_stage(name, own, is_first=True, is_last=False, is_tied=True)]
        return sum(kept_bytes(stored[name][1], "", self.item_bytes) for name in names)

    def placed(self, granted_bytes: int, gpu_layers: int | None, offload_bytes: int, context_len: int) -> Rank:
        """With as many of its layers on the host as are asked for, else as few as memory lets."""
        asked = asked_host_layers(self.layer_bytes, gpu_layers, offload_bytes)
        if gpu_layers is not None:
            return replace(self, num_host=asked)
        context = min(context_len, LEAST_CONTEXT)
        caches = [2 * a.num_kv_heads * a.head_dim * self.item_bytes * context for a in self._mixers]
        room = int((1 - WORK_SHARE) * granted_bytes) - self.rest_bytes
        return replace(self, num_host=max(asked, len(self.layers) - layers_that_fit(self.layer_bytes, caches, room)))

    def workspace_bytes(self, num_tokens: int, context_len: int, num_sequences: int) -> int:
        """As a start measures it: every token scored, one drawn for each sequence; and graphs and rotary tables."""
        step = StepSize(
            num_tokens=num_tokens,
            num_rows=num_tokens * self.has_head,
            num_sequences=num_sequences,
            context_len=context_len,
            num_drawn=num_sequences * self.has_head,
        )
        footprint = StepFootprint(self.spec, self.item_bytes)
        rows = min(_MAX_GRAPH_ROWS, max(1, MAX_GRAPH_LOGIT_BYTES // (_FLOAT_BYTES * self.spec.vocab_size)))
        graphs = 0 if self.num_host else footprint.graph_bytes(rows, context_len, has_head=self.has_head)
        ropes = {a.rope for a in self._mixers[self.layers.start : self.layers.stop] if a.rope is not None}
        tables = sum(context_len * rope.dim * _FLOAT_BYTES for rope in ropes)
        return footprint.step_bytes(step) + graphs + tables

    @property
    def _mixers(self) -> list[AttentionSpec]:
        return [layer.mixer for layer in self.spec.layers if isinstance(layer.mixer, AttentionSpec)]


def deal_out(spec: ModelSpec, stored: Stored, parts: Parts, item_bytes: int, *, keeps_packed: bool) -> list[Rank]:
    """What each rank has, in their order. item_bytes: of a weight that does not stay packed, as a GPU keeps some.

    Raises InvalidRequestError and UnsupportedModelError for a model that so many cannot share.
    """
    ends = stage_ends(spec, lambda name: stored[name][0], parts.pipeline, item_bytes, keeps_packed=keeps_packed)
    columns = [_Column.of(spec, stored, column, parts.tensor) for column in range(parts.tensor)]
    found = []
    for rank in range(parts.num_ranks):
        column, stage = columns[rank % parts.tensor], stage_of(rank, parts.tensor, parts.pipeline)
        layers = range((0, *ends)[stage], ends[stage])
        found.append(column.rank(stage, layers, item_bytes, is_last=stage == len(ends) - 1, keeps_packed=keeps_packed))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """What one of those who share every layer has of all of them."""

    spec: ModelSpec
    vocab_size: int  # of the whole model
    formats: Mapping[str, str]
    is_first: bool

    @staticmethod
    def of(spec: ModelSpec, stored: Stored, column: int, width: int) -> _Column:
        formats = {name: found for name, (found, _) in stored.items()}
        own = spec
        if width > 1:
            division = divide(spec, column, width, lambda name: BY_NAME[formats[name]].group_size)
            own, dealt = own_spec(spec, division), cuts(spec, division)
            formats |= {name: "F32" for name, cut in dealt.items() if name in formats and _splits(cut, formats[name])}
        return _Column(spec=own, vocab_size=spec.vocab_size, formats=formats, is_first=column == 0)

    def rank(self, stage: int, layers: range, item_bytes: int, *, is_last: bool, keeps_packed: bool) -> Rank:
        spec, sizes, rest, embedding = self.spec, [0] * len(layers), 0, 0
        is_tied = spec.tie_word_embeddings
        for name, shape in tensor_shapes(spec).items():
            is_own = is_of_stage(name, layers, is_first=stage == 0, is_last=is_last, is_tied=is_tied)
            if not is_own or (name.endswith(_ROW_BIASES) and not self.is_first):
                continue
            num_bytes = kept_bytes(shape, self.formats[name] if keeps_packed else "", item_bytes)
            if name.startswith("layers."):
                sizes[int(name.split(".")[1]) - layers.start] += num_bytes
            elif is_of_stage(name, layers, is_first=False, is_last=True, is_tied=is_tied):
                rest += num_bytes
            else:
                embedding += num_bytes
        return Rank(
            spec=replace(spec, vocab_size=self.vocab_size),
            stage=stage,
            layers=layers,
            has_head=is_last,
            layer_bytes=tuple(sizes),
            rest_bytes=rest,
            embedding_bytes=embedding,
            item_bytes=item_bytes,
        )


def _splits(cut: Cut, name: str) -> bool:
    """Whether columns are cut within a group of the format of that name: what is left becomes floats."""
    axis, own = cut
    size = BY_NAME[name].group_size
    return axis == 1 and bool(own.start % size or own.stop % size)
