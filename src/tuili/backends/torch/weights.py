"""Weights from their files to the device: dense in the model's dtype, or packed as they are stored. Knows no layers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListLike

import numpy as np
import torch
from torch import Tensor

from tuili.backends.torch.ops import PACKABLE, DenseWeight, PackedWeight, pack
from tuili.backends.torch.staging import PIECE_BYTES, Staging, in_order
from tuili.errors import ModelFileError
from tuili.models.shapes import Shape
from tuili.quant.format import Tensor as FileTensor

Weight = DenseWeight | PackedWeight
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_log = logging.getLogger(__name__)


class WeightReader:
    """Reads each weight once, when it is asked for, and keeps nothing of the files.

    keep_packed leaves matrices in their quantized format where the operations know it; others, and all of them
    without keep_packed, become `dtype`, which `report` tells.
    """

    def __init__(
        self,
        weights: Mapping[str, FileTensor],
        shapes: Mapping[str, Shape],
        *,
        dtype: torch.dtype,
        device: torch.device,
        keep_packed: bool,
    ) -> None:
        if wrong := sorted(weights.keys() ^ shapes.keys()):
            raise ModelFileError(f"weights missing or not the spec's: {', '.join(wrong[:4])}")
        self._weights = weights
        self._shapes = shapes
        self._keep_packed = keep_packed
        self._unpacked: Counter[str] = Counter()
        self._staging = Staging(device)
        self.dtype = dtype
        self.device = device
        self.num_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def num_rows(self, name: str) -> int:
        """Of the matrix called `name`."""
        return self._shapes[f"{name}.weight"][0]

    def vector(self, name: str) -> Tensor | None:
        """float32, whatever shape it has; None where the model has none of that name."""
        if name not in self._shapes:
            return None
        tensor = self._read(name)
        values = torch.from_numpy(np.array(tensor.dequantize(), np.float32, order="C"))
        return self._counted(values.to(self.device))

    def bias(self, names: ListLike[str]) -> Tensor | None:
        """Biases one after the other in the model's dtype, zeros for those that are not there; None without any."""
        if not any(f"{name}.bias" in self._shapes for name in names):
            return None
        parts = [self.vector(f"{name}.bias") for name in names]
        sizes = map(self.num_rows, names)
        zeros = torch.zeros(1, dtype=torch.float32, device=self.device)
        whole = [zeros.expand(n) if p is None else p for p, n in zip(parts, sizes, strict=True)]
        return torch.cat(whole).to(self.dtype)

    def matrices(self, names: ListLike[str]) -> Iterator[tuple[tuple[str, ...], Weight]]:
        """Matrices of as many columns, those next to each other in one format put on top of one another."""
        tensors = [self._read(f"{name}.weight") for name in names]
        start = 0
        for end in range(1, len(names) + 1):
            if end == len(names) or self._kind(tensors[end]) != self._kind(tensors[start]):
                yield tuple(names[start:end]), self._matrix(tensors[start:end])
                start = end

    def matrix(self, name: str) -> Weight:
        return self._matrix([self._read(f"{name}.weight")])

    def report(self) -> None:
        """Says, once, which quantized matrices take more room than in their file."""
        if self._unpacked:
            found = ", ".join(f"{count} in {name}" for name, count in sorted(self._unpacked.items()))
            _log.info("matrices kept as %s, having no kernel on %s: %s", self.dtype, self.device, found)

    def _read(self, name: str) -> FileTensor:
        tensor = self._weights[name]
        if tensor.shape != self._shapes[name]:
            raise ModelFileError(f"weight {name} has shape {tensor.shape}; allowed: {self._shapes[name]}")
        return tensor

    def _kind(self, tensor: FileTensor) -> str:
        """What tensors must have in common to be one matrix."""
        return tensor.format.name if self._keep_packed and tensor.format.name in PACKABLE else "dense"

    def _matrix(self, tensors: ListLike[FileTensor]) -> Weight:
        if self._kind(tensors[0]) != "dense":
            weight = self._packed(tensors)
            self.num_bytes += weight.num_bytes
            return weight
        self._unpacked.update(t.format.name for t in tensors if t.format.name not in _FLOATS)
        num_rows, num_cols = sum(t.shape[0] for t in tensors), tensors[0].shape[1]
        whole = torch.empty((num_rows, num_cols), dtype=self.dtype, device=self.device)
        start = 0
        for tensor in tensors:
            for part in self._floats(tensor):
                whole[start : start + len(part)].copy_(part)
                start += len(part)
        return DenseWeight(self._counted(whole))

    def _floats(self, tensor: FileTensor) -> Iterator[Tensor]:
        """Rows of a matrix, a few at a time, as floats of the file's dtype or float32 where that is quantized.

        The first are on the device; they are gone when the next are asked for.
        """
        pieces = (piece.data for piece in _pieces(tensor))
        if (dtype := _FLOATS.get(tensor.format.name)) is None:
            yield from map(torch.from_numpy, in_order(tensor.format.dequantize, pieces))
            return
        for part in self._staging.through(pieces):
            on_device = part.to(self.device, non_blocking=True)
            yield on_device.view(dtype).view(-1, tensor.shape[-1])

    def _packed(self, tensors: ListLike[FileTensor]) -> PackedWeight:
        """Matrices of one format and width as one, packed a few rows at a time."""
        num_rows, start = sum(tensor.shape[0] for tensor in tensors), 0
        whole: PackedWeight | None = None
        for part in in_order(pack, (piece for tensor in tensors for piece in _pieces(tensor))):
            whole = whole or self._room_for(part, num_rows)
            for plane, rows in zip(whole.planes(), part.planes(), strict=True):
                if plane is not None and rows is not None:
                    plane[start : start + len(rows)].copy_(rows)
            start += part.shape[0]
        assert whole is not None
        return whole

    def _room_for(self, part: PackedWeight, num_rows: int) -> PackedWeight:
        """Planes like those of `part`, on the device, of so many rows."""
        levels, scales, *rest = [
            None if plane is None else torch.empty((num_rows, *plane.shape[1:]), dtype=plane.dtype, device=self.device)
            for plane in part.planes()
        ]
        assert levels is not None
        assert scales is not None
        return PackedWeight(part.format, (num_rows, part.shape[1]), levels, scales, *rest)

    def _counted(self, tensor: Tensor) -> Tensor:
        self.num_bytes += tensor.nbytes
        return tensor


def _pieces(tensor: FileTensor) -> Iterator[FileTensor]:
    """The matrix, a few rows at a time."""
    rows = tensor.data
    step = max(1, PIECE_BYTES // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        yield FileTensor(tensor.format, (len(part), tensor.shape[-1]), part)


def rows_of(weight: PackedWeight, ids: Tensor) -> PackedWeight:
    """The rows of `ids` [T]."""
    planes = [None if plane is None else plane[ids] for plane in weight.planes()]
    levels, scales, *rest = planes
    assert levels is not None
    assert scales is not None
    return PackedWeight(weight.format, (len(ids), weight.shape[1]), levels, scales, *rest)
