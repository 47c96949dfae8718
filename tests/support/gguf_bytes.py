"""Writes GGUF files byte by byte, so that a test can get any one of them wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
CODES = {UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f"}
CODES |= {BOOL: "B", UINT64: "Q", INT64: "q", FLOAT64: "d"}


def number(kind: int, value: float) -> bytes:
    return struct.pack(f"<{CODES[kind]}", value)


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return number(UINT64, len(raw) if length is None else length) + raw


def array(kind: int, items: Sequence[bytes], count: int | None = None) -> bytes:
    return number(UINT32, kind) + number(UINT64, len(items) if count is None else count) + b"".join(items)


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + number(UINT32, kind) + value


def strings(key: str, items: Sequence[str]) -> bytes:
    return pair(key, ARRAY, array(STRING, [text(item) for item in items]))


@dataclass(frozen=True)
class Entry:
    """A row of the tensor table; dims innermost first, as GGUF has them."""

    name: str | bytes = "a.weight"
    dims: tuple[int, ...] = (32, 2)
    kind: int = 8
    offset: int = 0
    num_dims: int | None = None
    name_length: int | None = None

    def encode(self) -> bytes:
        num_dims = len(self.dims) if self.num_dims is None else self.num_dims
        dims = b"".join(number(UINT64, dim) for dim in self.dims)
        name = text(self.name, self.name_length)
        return name + number(UINT32, num_dims) + dims + number(UINT32, self.kind) + number(UINT64, self.offset)


@dataclass(frozen=True)
class Gguf:
    """A GGUF file in parts, any of which may be wrong. `data` fits one Q8_0 tensor of [2, 32]."""

    magic: bytes = b"GGUF"
    version: bytes = number(UINT32, 3)
    pairs: Sequence[bytes] = ()
    entries: Sequence[Entry] = ()
    num_tensors: int | None = None
    num_pairs: int | None = None
    alignment: int = 32
    data: bytes = bytes(range(68))

    def encode(self) -> bytes:
        num_tensors = len(self.entries) if self.num_tensors is None else self.num_tensors
        num_pairs = len(self.pairs) if self.num_pairs is None else self.num_pairs
        head = self.magic + self.version + number(UINT64, num_tensors) + number(UINT64, num_pairs)
        head += b"".join(self.pairs) + b"".join(entry.encode() for entry in self.entries)
        return head + bytes(-len(head) % self.alignment) + (self.data if self.entries else b"")
