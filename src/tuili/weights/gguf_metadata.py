"""GGUF's keys and values, read through a cursor that checks every length against the file before using it.

Knows the encoding of metadata; not which keys exist or what they mean, and nothing of tensors.
Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from array import array
from itertools import pairwise
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from tuili.errors import ModelFileError
from tuili.quant.format import Bytes

Numbers = list[int] | list[float] | list[bool]
Value = int | float | bool | str | Numbers | list[str]

# Bounds on what a header may cost to read; the largest vocabularies take a tenth.
MAX_HEADER_BYTES = 64 << 20
MAX_ARRAY_ELEMENTS = 1 << 22
MAX_ENTRIES = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1

_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_TYPE_NAMES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"),
    *("bool", "string", "array", "uint64", "int64", "float64"),
)
_NUMBER_DTYPES = {
    **dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "u1"))),
    **dict(enumerate(("<u8", "<i8", "<f8"), start=10)),
}
_SEPARATOR = "\0" * _UINT64.size
_EXPECTED_BYTES = 64  # a string of a long array has hardly more, its length included
_PIECE = 1 << 16


class HeaderCutError(ModelFileError):
    """The header goes on behind the bytes there are."""


class Cursor:
    """A position in the header of a file. Every read is checked; every failure names file and position."""

    __slots__ = ("_is_whole_file", "data", "file_name", "limit", "position")

    def __init__(self, data: Bytes, file_name: str) -> None:
        self.limit = min(data.size, MAX_HEADER_BYTES)
        self.data = data[: self.limit].data  # a memoryview
        self.file_name = file_name
        self.position = 0
        self._is_whole_file = self.limit == data.size

    def fail(self, found: str, allowed: str) -> NoReturn:
        raise ModelFileError(f"{self.file_name}: {found}, {allowed}")

    def fail_at_end(self, what: str, start: int) -> NoReturn:
        bound = "the file has" if self._is_whole_file else "a header has at most"
        found = f"{self.file_name}: {what} at byte {start} goes past the end, {bound} {self.limit} bytes"
        raise HeaderCutError(found)

    def skip(self, count: int, what: str) -> int:
        """Moves past `count` bytes and returns where they start."""
        start = self.position
        if count > self.limit - start:
            self.fail_at_end(f"{what} of {count} bytes", start)
        self.position = start + count
        return start

    def uint32(self, what: str) -> int:
        return int(_UINT32.unpack_from(self.data, self.skip(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(_UINT64.unpack_from(self.data, self.skip(8, what))[0])

    def text(self, what: str, max_bytes: int = MAX_HEADER_BYTES) -> str:
        length = self.uint64(f"length of {what}")
        if length > max_bytes:
            self.fail(f"{what} of {length} bytes at byte {self.position}", f"at most {max_bytes} are allowed")
        start = self.skip(length, what)
        try:
            return str(self.data[start : self.position], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} at byte {start} is not UTF-8", "all text must be")


def read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Value], dict[str, str]]:
    """Reads `count` key-value pairs. Returns the values and the names of their types, by key.

    Raises ModelFileError for a duplicate, empty or over-long key, an unknown type, nested or too long
    arrays, lengths past the end, text that is not UTF-8.
    """
    if count > MAX_ENTRIES:
        cursor.fail(f"{count} metadata keys", f"at most {MAX_ENTRIES} are allowed")
    values: dict[str, Value] = {}
    types: dict[str, str] = {}
    num_elements = 0
    for _ in range(count):
        key = cursor.text("metadata key", MAX_KEY_BYTES)
        if not key or key in values:
            cursor.fail(
                f"{'duplicate' if key else 'empty'} metadata key {key!r}", "keys must be distinct and not empty"
            )
        kind = _read_type(cursor, f"type of {key}")
        if kind == _ARRAY:
            elements = _read_array(cursor, key, MAX_ARRAY_ELEMENTS - num_elements)
            values[key] = elements
            num_elements += len(elements)
        else:
            values[key] = cursor.text(key) if kind == _STRING else _read_numbers(cursor, kind, 1, key)[0]
        types[key] = _TYPE_NAMES[kind]
    return values, types


def _read_type(cursor: Cursor, what: str) -> int:
    kind = cursor.uint32(what)
    if kind >= len(_TYPE_NAMES):
        cursor.fail(f"{what} is {kind}", f"allowed are 0 to {len(_TYPE_NAMES) - 1}")
    return kind


def _read_array(cursor: Cursor, key: str, max_elements: int) -> Numbers | list[str]:
    kind = _read_type(cursor, f"element type of {key}")
    if kind == _ARRAY:
        cursor.fail(f"{key} is an array of arrays", "elements must be numbers, bools or strings")
    count = cursor.uint64(f"length of {key}")
    if count > max_elements:
        allowed = f"all arrays together may have {MAX_ARRAY_ELEMENTS}"
        cursor.fail(f"{key} has {count} elements at byte {cursor.position}", allowed)
    return _read_strings(cursor, count, key) if kind == _STRING else _read_numbers(cursor, kind, count, key)


def _read_numbers(cursor: Cursor, kind: int, count: int, key: str) -> Numbers:
    dtype = np.dtype(_NUMBER_DTYPES[kind])
    start = cursor.skip(count * dtype.itemsize, key)
    values = np.frombuffer(cursor.data[start : cursor.position], dtype)
    if kind == _BOOL:
        if (values > 1).any():
            cursor.fail(f"{key} holds a bool of {values.max()}", "allowed are 0 and 1")
        values = values.view(np.bool_)
    numbers: Numbers = values.tolist()
    return numbers


def _read_strings(cursor: Cursor, count: int, key: str) -> list[str]:
    """Decodes all strings of an array at once, as vocabularies have a quarter of a million.

    Overwriting the lengths by NULs keeps characters from reaching across two strings and, as long as no
    string holds a NUL itself, makes eight NULs the separator.
    """
    if count == 0:
        return []
    start = cursor.position
    bounds = _walk_short_strings(cursor, count)
    if bounds is None:
        bounds = _walk_strings(cursor, count, key)
    cursor.position = int(bounds[-1])
    bounds = bounds - start
    region = np.frombuffer(cursor.data[start : cursor.position], np.uint8).copy()
    _lengths_everywhere(region.data)[bounds[:-1]] = 0
    try:
        text = str(region.data, "utf-8")
    except UnicodeDecodeError as error:
        index = int(np.searchsorted(bounds, error.start, side="right")) - 1
        cursor.fail(f"string {index} of {key} is not UTF-8", "all text must be")
    if text.count("\0") == count * len(_SEPARATOR):
        return text.split(_SEPARATOR)[1:]
    raw = region.tobytes()
    return [raw[begin + 8 : end].decode() for begin, end in pairwise(bounds.tolist())]


def _walk_strings(cursor: Cursor, count: int, key: str) -> NDArray[np.int64]:
    """Where each of `count` strings begins, with its length, and where the last one ends: [count + 1]."""
    data, position, read_length = cursor.data, cursor.position, _UINT64.unpack_from
    bounds = array("q", [position])
    try:
        for _ in range(count):
            position += 8 + read_length(data, position)[0]
            bounds.append(position)
    except (struct.error, OverflowError):  # no length at this position, or one of 2^63 and more
        cursor.fail_at_end(f"{key} of {count} strings", cursor.position)
    if position > cursor.limit:
        cursor.fail_at_end(f"{key} of {count} strings", cursor.position)
    return np.frombuffer(bounds, np.int64)


def _walk_short_strings(cursor: Cursor, count: int) -> NDArray[np.int64] | None:
    """What _walk_strings answers, for all strings at once; None where that does not tell.

    The length of a string shorter than 256 bytes is a byte and seven zeros, which text hardly holds elsewhere: all such
    places are found, and then checked to be each other's neighbours.
    """
    start = cursor.position
    lengths = _lengths_everywhere(cursor.data[start : start + _EXPECTED_BYTES * count])
    found = _first_short(lengths, count)
    if found.size < count:
        return None
    ends = found + lengths[found].astype(np.int64) + _UINT64.size
    if found[0] != 0 or ends[-1] > cursor.limit - start or (found[1:] != ends[:-1]).any():
        return None
    return np.append(found, ends[-1]) + start


def _first_short(lengths: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Where the first `count` below 256 are, or all there are; in pieces, as a hostile file has them at every byte."""
    found, num_found = [np.empty(0, np.int64)], 0
    for begin in range(0, lengths.size, _PIECE):
        found.append(np.flatnonzero(lengths[begin : begin + _PIECE] < 256) + begin)
        num_found += found[-1].size
        if num_found >= count:
            break
    return np.concatenate(found)[:count]


def _lengths_everywhere(data: memoryview) -> NDArray[np.uint64]:
    """The eight bytes from every byte on, read as a length: a view [size - 7] of overlapping windows."""
    return np.ndarray((max(0, len(data) - 7),), "<u8", data, strides=(1,))
