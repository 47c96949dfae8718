"""Where in a checkpoint a canonical weight is: in a tensor of its own, in rows of a fused one, or in one per head.

Knows names, specs and rows of bytes; not files or families.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tuili.models.shapes import Shape
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from tuili.quant.format import Tensor

Rows = Callable[[], slice | NDArray[np.intp]]  # made when read: a configuration may claim any size
_OF_LAYER = re.compile(r"layers\.(\d{1,6})\.(\w+)\.(weight|bias)")
_OF_HEAD = re.compile(r"(.+)\.(\d{1,6})\.(weight|bias)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a canonical weight is made of.

    names:         the checkpoint's tensors, one, or one per head in order.
    rows:          which rows of it; None: all.
    num_rows:      how many the whole tensor has to have, where `rows` says which.
    is_transposed: the checkpoint holds [in_features, out_features].
    is_stacked:    each name is one row of the weight.
    """

    names: tuple[str, ...]
    rows: Rows | None = None
    num_rows: int = 0
    is_transposed: bool = False
    is_stacked: bool = False

    def whole_shape(self, shape: Shape) -> Shape:
        """The shape each of `names` has to have for a weight of `shape`."""
        if self.is_stacked:
            return shape[1:]
        whole = shape if self.rows is None else (self.num_rows, *shape[1:])
        return whole[::-1] if self.is_transposed else whole

    def moves_elements(self, shape: Shape) -> bool:
        """Whether single elements are taken out of a vector, or put together: what packed groups do not allow."""
        return self.is_stacked or (self.rows is not None and len(shape) == 1)

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The weight, a view where its rows lie together. Raises nothing: shapes and formats were checked."""
        first = tensors[self.names[0]]
        if self.is_stacked:
            data = np.concatenate([tensors[name].data for name in self.names])
            return Tensor(first.format, shape, data)
        if self.rows is None and not self.is_transposed:
            return first
        rows = slice(None) if self.rows is None else self.rows()
        if len(shape) == 1:
            elements = first.data.reshape(first.shape[0], -1)[rows]
            return Tensor(first.format, shape, elements.reshape(1, -1))
        if not self.is_transposed:
            return Tensor(first.format, shape, first.data[rows])
        assert first.format.group_size == 1  # no file format packs across rows
        elements = first.data.view(f"u{first.format.group_bytes}").T[rows]
        return Tensor(first.format, shape, np.ascontiguousarray(elements).view(np.uint8))


def find_sources(named: Mapping[str, str], spec: ModelSpec, transposed: frozenset[str]) -> list[tuple[str, Source]]:
    """Canonical names, each with its source, from names that the family's table made canonical where it could.

    transposed: the leaves, fused ones too, whose matrices the checkpoint holds as [in_features, out_features].
    A name may occur twice; what no layer has keeps its name.
    """
    sources: list[tuple[str, Source]] = []
    heads: dict[str, dict[int, str]] = {}
    for name, tensor in named.items():
        if found := _OF_HEAD.fullmatch(name):
            heads.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = tensor
            continue
        layer = _OF_LAYER.fullmatch(name)
        is_transposed = layer is not None and layer[3] == "weight" and layer[2] in transposed
        parts = _parts(layer, spec)
        if layer is None or not parts:
            sources.append((name, Source(names=(tensor,), is_transposed=is_transposed)))
            continue
        num_rows = sum(count for _, _, count in parts)
        for part, rows, _ in parts:
            source = Source(names=(tensor,), rows=rows, num_rows=num_rows, is_transposed=is_transposed)
            sources.append((f"layers.{layer[1]}.{part}.{layer[3]}", source))
    for name, tensor_of in heads.items():
        indices = sorted(tensor_of)
        names = tuple(tensor_of[i] for i in indices)
        is_whole = indices == list(range(len(indices)))  # else it is a weight of no model
        sources.append((name if is_whole else f"{name} in part", Source(names=names, is_stacked=True)))
    return sources


Part = tuple[str, Rows, int]  # leaf, rows and how many


def _parts(name: re.Match[str] | None, spec: ModelSpec) -> list[Part]:
    """What a fused matrix or bias of a layer holds; [] for any other."""
    if name is None or name[2] not in FUSED or int(name[1]) >= len(spec.layers):
        return []
    return FUSED[name[2]](spec.layers[int(name[1])])


def _one_after_the_other(sizes: Mapping[str, int]) -> list[Part]:
    ends = accumulate(sizes.values())
    return [(leaf, partial(slice, end - n, end), n) for (leaf, n), end in zip(sizes.items(), ends, strict=True)]


def _qkv(layer: LayerSpec) -> list[Part]:
    a = layer.mixer
    assert isinstance(a, AttentionSpec)
    kv_size = a.num_kv_heads * a.head_dim
    return _one_after_the_other({"q_proj": a.num_heads * a.head_dim, "k_proj": kv_size, "v_proj": kv_size})


def _qkv_groups(layer: LayerSpec) -> list[Part]:
    """For each kv head its queries, its key and its value."""
    a = layer.mixer
    assert isinstance(a, AttentionSpec)
    group = a.num_heads // a.num_kv_heads
    shape = (a.num_kv_heads, group + 2, a.head_dim)

    def rows(first: int, end: int) -> NDArray[np.intp]:
        return np.arange(math.prod(shape)).reshape(shape)[:, first:end].ravel()

    kv_size = a.num_kv_heads * a.head_dim
    return [
        ("q_proj", partial(rows, 0, group), group * kv_size),
        ("k_proj", partial(rows, group, group + 1), kv_size),
        ("v_proj", partial(rows, group + 1, group + 2), kv_size),
    ]


def _gate_up(layer: LayerSpec) -> list[Part]:
    assert isinstance(layer.mlp, MlpSpec)
    size = layer.mlp.intermediate_size
    return _one_after_the_other({"gate_proj": size, "up_proj": size})


FUSED: Mapping[str, Callable[[LayerSpec], list[Part]]] = {
    "qkv_proj": _qkv,
    "qkv_groups_proj": _qkv_groups,
    "gate_up_proj": _gate_up,
}
