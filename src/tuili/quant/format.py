"""What a weight format is, and a weight as its file holds it. Knows bytes; not files, names or models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantFormat:
    """One storage format: groups of `group_size` consecutive weights of a row take `group_bytes`.

    dequantize: uint8 [rows, row_bytes] -> float32 [rows, cols], exact to the format's definition.
    quantize:   float32 [rows, cols], finite -> uint8 [rows, row_bytes].
    """

    name: str
    gguf_id: int
    group_size: int
    group_bytes: int
    dequantize: Callable[[Bytes], Floats]
    quantize: Callable[[Floats], Bytes]
    safetensors_dtype: str | None = None

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights; `cols` must be whole groups."""
        assert cols % self.group_size == 0
        return cols // self.group_size * self.group_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight still in its file's format, usually a view of a memory-mapped file.

    data: uint8 [rows, row_bytes], C-contiguous, where rows is the product of all but the last of
    `shape` (a vector is one row). Row permutations are exact on these bytes.
    """

    format: QuantFormat
    shape: tuple[int, ...]
    data: Bytes

    def dequantize(self) -> Floats:
        """float32 array of `shape`."""
        return self.format.dequantize(self.data).reshape(self.shape)

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)
