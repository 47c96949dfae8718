"""What positions do to queries and keys, from tables that loading makes. Knows rope.py's formulas; no layers."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuili.backends.torch.ops import HeadPositions
from tuili.models.rope import attention_factor, inverse_frequencies
from tuili.models.spec import AttentionSpec, QueryScaling, RopeSpec

_Kind = tuple[RopeSpec | None, QueryScaling | None]


class PositionTables:
    """Cosines, sines and query factors of every position below context_len, once for each kind of layer."""

    def __init__(self, layers: ListLike[AttentionSpec], context_len: int, device: torch.device) -> None:
        kinds = list(dict.fromkeys((a.rope, a.query_scaling) for a in layers))
        self.kind_of = tuple(kinds.index((a.rope, a.query_scaling)) for a in layers)
        self._tables = [_tables(kind, context_len, device) for kind in kinds]

    def at(self, positions: Tensor) -> list[HeadPositions]:
        """Of each kind, the rows for positions int32 [T]."""
        return [_rows(rotations, factors, positions) for rotations, factors in self._tables]


def _rows(rotations: Tensor | None, factors: Tensor | None, positions: Tensor) -> HeadPositions:
    cos, sin = (None, None) if rotations is None else rotations.index_select(1, positions)
    return HeadPositions(cos, sin, None if factors is None else factors.index_select(0, positions))


def _tables(kind: _Kind, context_len: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    rope, scaling = kind
    rotations = None if rope is None else torch.from_numpy(_rotations(rope, context_len)).to(device)
    factors = None if scaling is None else torch.from_numpy(_factors(scaling, context_len)).to(device)
    return rotations, factors


def _rotations(rope: RopeSpec, context_len: int) -> NDArray[np.float32]:
    """[2, context_len, dim / 2]: cosines and sines. Angles are float32 products, as the models were trained with."""
    frequencies = np.array(inverse_frequencies(rope, context_len), np.float32)
    angles = (np.arange(context_len, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    waves = np.stack((np.cos(angles), np.sin(angles))) * attention_factor(rope, context_len)
    return waves.astype(np.float32)


def _factors(scaling: QueryScaling, context_len: int) -> NDArray[np.float32]:
    turns = np.arange(context_len) // scaling.original_max_position
    return (1 + scaling.beta * np.log1p(turns)).astype(np.float32)
