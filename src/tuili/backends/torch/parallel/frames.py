"""What the first process of a group tells the others over a socket: a word, plain values, and arrays. Knows bytes only.

A frame is two little-endian uint32, the sizes of its head and of its arrays; the head, JSON; and the arrays' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SIZES = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Frame:
    word: str
    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """Ready to be sent."""
        parts = [np.ascontiguousarray(array) for array in self.arrays.values()]
        shapes = [(name, part.dtype.str, part.shape) for name, part in zip(self.arrays, parts, strict=True)]
        head = json.dumps([self.word, self.values, shapes]).encode()
        data = [part.tobytes() for part in parts]
        return b"".join((_SIZES.pack(len(head), sum(map(len, data))), head, *data))


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next frame; None where the stream has ended. Raises EOFError for one that ends within a frame."""
    sizes = stream.read(_SIZES.size)
    if not sizes:
        return None
    head_size, data_size = _SIZES.unpack(_whole(sizes, _SIZES.size))
    word, values, shapes = json.loads(_whole(stream.read(head_size), head_size))
    data = memoryview(_whole(stream.read(data_size), data_size))
    arrays, start = {}, 0
    for name, dtype, shape in shapes:
        array = np.frombuffer(data, np.dtype(dtype), int(np.prod(shape)), start).reshape(shape)
        arrays[name] = array
        start += array.nbytes
    return Frame(word, values, arrays)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise EOFError("the stream ended within a frame")
    return data
