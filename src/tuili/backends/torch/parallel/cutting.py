"""Weights of a part of a model, cut out of those of the whole when they are asked for. Knows bytes; no devices."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np

from tuili.backends.torch_sizes.division import Division, cuts
from tuili.models.spec import ModelSpec
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor
from tuili.weights.tensor_table import TensorTable

_log = logging.getLogger(__name__)


def stored_group_size(weights: Mapping[str, Tensor], name: str) -> int:
    """How many weights of a row lie in one group of its format. Reads no values where the table can tell."""
    return BY_NAME[stored_format(weights, name)].group_size


def stored_format(weights: Mapping[str, Tensor], name: str) -> str:
    """The name of its format. Reads no values where the table can tell."""
    return weights.stored_format(name) if isinstance(weights, TensorTable) else weights[name].format.name


class CutWeights(Mapping[str, Tensor]):
    """The part's weights by name. Nothing is kept: asking twice cuts twice."""

    def __init__(self, whole: Mapping[str, Tensor], spec: ModelSpec, division: Division) -> None:
        self._whole = whole
        self._cuts = cuts(spec, division)

    def __getitem__(self, name: str) -> Tensor:
        tensor, cut = self._whole[name], self._cuts.get(name)
        return tensor if cut is None else part_of(tensor, *cut)

    def __contains__(self, name: object) -> bool:
        return name in self._whole.keys()  # noqa: SIM118  # a table makes what it is asked for

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def part_of(tensor: Tensor, axis: int, own: range) -> Tensor:
    """Rows or columns [own.start, own.stop); of the file only these are read.

    In their format, but for columns that begin or end within a group: those become float32.
    """
    shape = (*tensor.shape[:axis], len(own), *tensor.shape[axis + 1 :])
    if axis == 0 and len(shape) > 1:
        return Tensor(tensor.format, shape, tensor.data[own.start : own.stop])
    size, width = tensor.format.group_size, tensor.format.group_bytes
    if own.start % size == 0 and own.stop % size == 0:
        columns = slice(own.start // size * width, own.stop // size * width)
        return Tensor(tensor.format, shape, np.ascontiguousarray(tensor.data[:, columns]))
    return _floats(tensor, shape, own)


def _floats(tensor: Tensor, shape: tuple[int, ...], own: range) -> Tensor:
    """Columns that are no whole groups: those groups are dequantized."""
    _log.info("columns of %s are cut within a group of %d: floats", tensor.format.name, tensor.format.group_size)
    size, width = tensor.format.group_size, tensor.format.group_bytes
    first, last = own.start // size, -(-own.stop // size)
    groups = np.ascontiguousarray(tensor.data[:, first * width : last * width])
    values = tensor.format.dequantize(groups)[:, own.start - first * size : own.stop - first * size]
    floats = BY_NAME["F32"]
    return Tensor(floats, shape, floats.quantize(np.ascontiguousarray(values)))
