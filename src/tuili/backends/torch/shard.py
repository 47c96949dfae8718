"""What one of several processes holds of a model, and how it speaks with the others. Knows numbers; no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tuili.backends.torch_sizes.division import LayerShare
from tuili.backends.torch_sizes.stages import is_of_stage


class Ranks(Protocol):
    """Processes that compute together: all call the same methods in the same order, with tensors of the same shape."""

    @property
    def rank(self) -> int:
        """This process's place among them."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of everybody's x, the same bits for all. x may be changed."""
        ...

    def gather(self, x: Tensor) -> list[Tensor]:
        """Everybody's x, by rank."""
        ...

    def share(self, x: Tensor, source: int) -> Tensor:
        """x of that rank. x may be changed."""
        ...

    def send(self, x: Tensor, target: int) -> None:
        """x to that rank, which receives it."""
        ...

    def receive(self, x: Tensor, source: int) -> Tensor:
        """What that rank sends, of the shape of x, which it is written to."""
        ...

    def abort(self) -> None:
        """Ends what is under way: one of them is gone. For any thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One process's part of every layer and of the vocabulary, and those who have the other parts."""

    ranks: Ranks
    layers: tuple[LayerShare, ...]
    vocab: tuple[range, ...]  # of each rank

    @property
    def vocab_size(self) -> int:
        """Of all ranks."""
        return self.vocab[-1].stop

    @property
    def own_vocab(self) -> range:
        return self.vocab[self.ranks.rank]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Layers that follow each other: what a process has of a model whose stages compute one after the other.

    The first has the embedding, too; the last one the head, for which it has the embedding as well where both are one.
    """

    ranks: Ranks  # those who have the other stages, in their order
    layers: range
    size: int  # stages

    @property
    def is_first(self) -> bool:
        return self.ranks.rank == 0

    @property
    def is_last(self) -> bool:
        return self.ranks.rank == self.size - 1

    def has(self, name: str, is_tied: bool) -> bool:
        """Whether the weight of that name is of this stage; is_tied: the embedding is the head, too."""
        return is_of_stage(name, self.layers, is_first=self.is_first, is_last=self.is_last, is_tied=is_tied)
