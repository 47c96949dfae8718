"""A read-only mapping of names to weights that makes each weight when it is asked for. Knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tuili.quant.format import Tensor


class TensorTable(Mapping[str, Tensor]):
    """Weights by name. Nothing is kept: asking twice makes a weight twice."""

    __slots__ = ("_formats", "_makers")

    def __init__(
        self, makers: Mapping[str, Callable[[], Tensor]], formats: Mapping[str, Callable[[], str]] | None = None
    ) -> None:
        """`formats` names the format in which a weight is stored, where making it takes more than a view."""
        self._makers = dict(makers)
        self._formats = {} if formats is None else dict(formats)

    def stored_format(self, name: str) -> str:
        """The name of the format the file holds a weight in; a matrix keeps it. Reads no values."""
        ask = self._formats.get(name)
        return self._makers[name]().format.name if ask is None else ask()

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
