"""A read-only mapping of names to weights that makes each weight when it is asked for. Knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tuili.quant.format import Tensor


class TensorTable(Mapping[str, Tensor]):
    """Weights by name. Nothing is kept: asking twice makes a weight twice."""

    __slots__ = ("_makers",)

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
