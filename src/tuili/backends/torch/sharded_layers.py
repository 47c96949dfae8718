"""Modules of a model that lies in several processes: where what each has computed comes together.

Matrices whose rows were dealt out need nothing: what leaves them is dealt out, too. What leaves those whose columns
were is summed up here, and logits are put side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tuili.backends.torch.layers import Lookup, Norm
from tuili.backends.torch.shard import Ranks


@dataclass(frozen=True, slots=True)
class SummedLinear:
    """A product whose columns were dealt out. Only the first rank has its bias."""

    linear: Callable[[Tensor], Tensor]
    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        return self.ranks.sum(self.linear(x))


@dataclass(frozen=True, slots=True)
class SharedLookup:
    """Rows of a table whose rows were dealt out: all but one process have zeros for an id."""

    lookup: Lookup
    own: range
    ranks: Ranks

    def __call__(self, ids: Tensor) -> Tensor:
        is_own = (ids >= self.own.start) & (ids < self.own.stop)
        rows = self.lookup((ids - self.own.start).clamp(0, len(self.own) - 1))
        return self.ranks.sum(torch.where(is_own[:, None], rows, 0))


@dataclass(frozen=True, slots=True)
class GatheredLinear:
    """Logits of ids that were dealt out, the first ranks having the most."""

    linear: Callable[[Tensor], Tensor]
    vocab: tuple[range, ...]
    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        own = self.linear(x)
        parts = self.ranks.gather(F.pad(own, (0, len(self.vocab[0]) - own.shape[-1])))
        return torch.cat([part[:, : len(ids)] for part, ids in zip(parts, self.vocab, strict=True)], -1)


@dataclass(frozen=True, slots=True)
class SharedRowNorm:
    """A norm, which has no bias, of rows [T, width] that were dealt out.

    counts: whether the own part is to be counted; false where another process has the same one and counts it.
    """

    norm: Norm  # with the gains of the own part
    width: int
    counts: bool
    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        values = x.float()
        if self.norm.kind == "layer":
            values = values - self._mean(values)
        scales = torch.rsqrt(self._mean(values.square()) + self.norm.eps)
        return (values * scales * self.norm.gain).to(x.dtype)

    def _mean(self, values: Tensor) -> Tensor:
        own = values.sum(-1, keepdim=True)
        return self.ranks.sum(own if self.counts else torch.zeros_like(own)) / self.width
