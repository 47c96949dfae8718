"""GGUF files, versions 2 and 3, little-endian: metadata and tensors as views of the mapped file.

A file is hostile until shown otherwise: every count, length, offset and size is checked against the
file before it is used. Knows no model: keys and tensor names are the file's own.
Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tuili import quant
from tuili.errors import UnsupportedModelError
from tuili.quant.format import Bytes, QuantFormat, Tensor
from tuili.weights.gguf_metadata import (
    MAX_ENTRIES,
    MAX_HEADER_BYTES,
    Cursor,
    HeaderCutError,
    Value,
    read_metadata,
)
from tuili.weights.mapped_file import map_file

MAX_DIMS = 4
MAX_NAME_BYTES = 64
DEFAULT_ALIGNMENT = 32

# Types that ggml defines and tuili does not read: well formed, so they get their name in the refusal.
_UNREAD_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


class GgufFile:
    """An opened GGUF file.

    metadata: keys to Python values, arrays as lists.
    tensors:  names to weights, in file order; shapes are row-major (GGUF's dimensions reversed).
    Raises ModelNotFoundError when there is no such file, ModelFileError `name: what was found, what is
    allowed` when it is damaged, UnsupportedModelError for a tensor type that is not implemented.
    """

    __slots__ = ("alignment", "metadata", "num_bytes", "path", "tensors", "version")

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    num_bytes: int

    def __init__(self, path: Path) -> None:
        data = map_file(path)
        cursor = Cursor(data, path.name)
        self.path, self.num_bytes = path, data.size
        header = _read_header(cursor)
        self.version, self.alignment = header.version, header.alignment
        self.metadata = MappingProxyType(header.metadata)
        self.tensors = MappingProxyType(_place(cursor, data, header.entries, self.alignment))

    @property
    def tensor_types(self) -> Mapping[str, int]:
        """How many tensors each format holds, most frequent first."""
        return dict(Counter(tensor.format.name for tensor in self.tensors.values()).most_common())


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the tensor table."""

    name: str
    format: QuantFormat
    shape: tuple[int, ...]
    offset: int

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    alignment: int
    metadata: dict[str, Value]
    entries: list[_Entry]


def find_tensors(prefix: bytes, file_name: str) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """Where the data begin and each tensor lies, told from a file's first bytes; None when they are too few to tell.

    Raises ModelFileError and UnsupportedModelError as GgufFile does.
    """
    cursor = Cursor(np.frombuffer(prefix, np.uint8), file_name)
    try:
        header = _read_header(cursor)
    except HeaderCutError:
        if len(prefix) > MAX_HEADER_BYTES:
            raise
        return None
    base = _padded(cursor.position, header.alignment)
    starts = ((e, base + e.offset) for e in header.entries)
    return base, {e.name: (start, start + e.num_rows * e.row_bytes) for e, start in starts}


def _read_header(cursor: Cursor) -> _Header:
    version = _read_version(cursor)
    num_tensors = cursor.uint64("tensor count")
    if num_tensors > MAX_ENTRIES:
        cursor.fail(f"{num_tensors} tensors", f"at most {MAX_ENTRIES} are allowed")
    metadata, types = read_metadata(cursor, cursor.uint64("metadata key count"))
    alignment = _alignment(cursor, metadata, types)
    return _Header(version, alignment, metadata, [_read_entry(cursor) for _ in range(num_tensors)])


def _read_version(cursor: Cursor) -> int:
    start = cursor.skip(4, "magic number")
    magic = bytes(cursor.data[start : start + 4])
    if magic != b"GGUF":
        cursor.fail(f"starts with {magic!r}", "a GGUF file starts with b'GGUF'")
    version = cursor.uint32("version")
    if version & 0xFFFF == 0 and version != 0:
        cursor.fail("big-endian GGUF", "only little-endian files are read")
    if version not in (2, 3):
        cursor.fail(f"GGUF version {version}", "versions 2 and 3 are read")
    return version


def _alignment(cursor: Cursor, metadata: Mapping[str, Value], types: Mapping[str, str]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    alignment = metadata[key]
    if types[key] != "uint32" or not isinstance(alignment, int) or alignment.bit_count() != 1:
        cursor.fail(f"{key} is {alignment!r} of type {types[key]}", "a power of two of type uint32 is allowed")
    return alignment


def _read_entry(cursor: Cursor) -> _Entry:
    name = cursor.text("tensor name", MAX_NAME_BYTES)
    num_dims = cursor.uint32(f"dimension count of {name}")
    if not 1 <= num_dims <= MAX_DIMS:
        cursor.fail(f"tensor {name} has {num_dims} dimensions", f"1 to {MAX_DIMS} are allowed")
    shape = tuple(cursor.uint64(f"dimension of {name}") for _ in range(num_dims))[::-1]
    if 0 in shape:
        cursor.fail(f"tensor {name} has shape {list(shape)}", "every dimension must be at least 1")
    weight_format = _format(cursor, cursor.uint32(f"type of {name}"), name)
    if shape[-1] % weight_format.group_size:
        found = f"tensor {name} of type {weight_format.name} has rows of {shape[-1]}"
        cursor.fail(found, f"they must be multiples of {weight_format.group_size}")
    return _Entry(name, weight_format, shape, cursor.uint64(f"offset of {name}"))


def _format(cursor: Cursor, type_id: int, name: str) -> QuantFormat:
    if type_id in quant.BY_GGUF_ID:
        return quant.BY_GGUF_ID[type_id]
    allowed = ", ".join(quant.BY_GGUF_ID[i].name for i in sorted(quant.BY_GGUF_ID))
    if type_id not in _UNREAD_TYPES:
        cursor.fail(f"tensor {name} has unknown type {type_id}", f"allowed are {allowed}")
    found = _UNREAD_TYPES[type_id]
    raise UnsupportedModelError(f"{cursor.file_name}: tensor {name} has type {found}, implemented are {allowed}")


def _place(cursor: Cursor, data: Bytes, entries: list[_Entry], alignment: int) -> dict[str, Tensor]:
    """Tensors as views of the data section, where each must begin where the one before it ends, padded."""
    base = _padded(cursor.position, alignment)
    expected = 0
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        if entry.name in tensors:
            cursor.fail(f"duplicate tensor {entry.name}", "names must be distinct")
        if entry.offset != expected:
            cursor.fail(f"tensor {entry.name} has offset {entry.offset}", f"{expected} is where it must begin")
        size = entry.num_rows * entry.row_bytes
        start, end = base + entry.offset, base + entry.offset + size
        if end > data.size:
            cursor.fail(f"tensor {entry.name} ends at byte {end}", f"the file has {data.size}")
        view = data[start:end].reshape(entry.num_rows, entry.row_bytes)
        tensors[entry.name] = Tensor(entry.format, entry.shape, view)
        expected = _padded(entry.offset + size, alignment)
    return tensors


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
