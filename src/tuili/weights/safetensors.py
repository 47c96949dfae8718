"""safetensors files: tensors as views of the mapped file.

A file is hostile until shown otherwise: the header is bounded, tensors must tile the data without hole or
overlap, and every size must follow from dtype and shape. Knows no model: names are the file's own.
Source: the safetensors format (huggingface/safetensors, README "Format"); stricter than its reference
implementation in refusing duplicate names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeGuard

from tuili import quant
from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.quant.format import Bytes, Tensor
from tuili.weights.json_file import parse_object
from tuili.weights.mapped_file import map_file
from tuili.weights.tensor_table import TensorTable

MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_DTYPES_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("I64", "U64", "F64", "C64"),
}
_BITS = {dtype: bits for bits, dtypes in _DTYPES_BY_BITS.items() for dtype in dtypes}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header describes it: [begin, end) within the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An opened safetensors file.

    metadata: the header's `__metadata__`.
    tensors:  names to weights, in data order, made when asked for; asking for one whose dtype is not
              implemented raises UnsupportedModelError.
    Raises ModelNotFoundError when there is no such file, ModelFileError `name: what was found, what is
    allowed` when it is damaged.
    """

    __slots__ = ("metadata", "num_bytes", "path", "tensors")

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    num_bytes: int

    def __init__(self, path: Path) -> None:
        data = map_file(path)
        self.path, self.num_bytes = path, data.size
        header, start = _read_header(data, path.name)
        self.metadata = MappingProxyType(_metadata(header.pop("__metadata__", None), path.name))
        entries = [_entry(name, value, path.name) for name, value in header.items()]
        entries.sort(key=lambda entry: (entry.begin, entry.end))
        _check_tiling(entries, data.size - start, path.name)
        weights = data[start:]
        self.tensors = TensorTable({e.name: partial(_tensor, e, weights, path.name) for e in entries})


def header_bytes(prefix: bytes, file_name: str) -> int:
    """Where the data begin, told from the first 8 bytes. Raises ModelFileError for a length out of bounds."""
    length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if len(prefix) < _LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise ModelFileError(f"{file_name}: header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return _LENGTH_BYTES + length


def _read_header(data: Bytes, file_name: str) -> tuple[dict[str, Any], int]:
    """The parsed header and the byte where the data begins."""
    if data.size < _LENGTH_BYTES:
        raise ModelFileError(f"{file_name}: {data.size} bytes, a safetensors file begins with 8 bytes of header length")
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(f"{file_name}: header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    start = _LENGTH_BYTES + length
    if start > data.size:
        raise ModelFileError(f"{file_name}: header ends at byte {start}, the file has {data.size}")
    return parse_object(data[_LENGTH_BYTES:start].tobytes(), file_name), start


def _metadata(value: object, file_name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ModelFileError(f"{file_name}: __metadata__ is {value!r:.80}, an object of strings is allowed")
    return value


def _entry(name: str, value: object, file_name: str) -> _Entry:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        allowed = '"dtype", "shape" and two "data_offsets", whole numbers below 2^64'
        raise ModelFileError(f"{file_name}: tensor {name} is {value!r:.120}, it must have {allowed}")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ModelFileError(f"{file_name}: tensor {name} has dtype {dtype!r:.40}, allowed are {', '.join(_BITS)}")
    return _Entry(name, dtype, tuple(shape), *offsets)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    # bool is an int to Python, not to JSON.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**64 for item in value)


def _check_tiling(entries: list[_Entry], num_bytes: int, file_name: str) -> None:
    """Tensors, in order, cover the data exactly once, each with as many bytes as dtype and shape take."""
    position = 0
    for e in entries:
        num_bits = math.prod(e.shape) * _BITS[e.dtype]
        # Dimensions beside a zero are bounded too, as others compute the product in 64 bits.
        if num_bits != 8 * (e.end - e.begin) or math.prod(max(dim, 1) for dim in e.shape) >= 2**63:
            found = f"tensor {e.name} of dtype {e.dtype} and shape {list(e.shape)} has {e.end - e.begin} bytes"
            raise ModelFileError(f"{file_name}: {found}, {num_bits / 8:.16g} are what it takes")
        if e.begin != position:
            raise ModelFileError(
                f"{file_name}: tensor {e.name} begins at byte {e.begin} of the data, {position} is where it must"
            )
        position = e.end
    if position != num_bytes:
        raise ModelFileError(f"{file_name}: tensors end at byte {position} of the data, the file has {num_bytes}")


def _tensor(entry: _Entry, data: Bytes, file_name: str) -> Tensor:
    found = quant.BY_SAFETENSORS_DTYPE.get(entry.dtype)
    if found is None:
        allowed = ", ".join(sorted(quant.BY_SAFETENSORS_DTYPE))
        raise UnsupportedModelError(
            f"{file_name}: tensor {entry.name} has dtype {entry.dtype}, implemented are {allowed}"
        )
    cols = entry.shape[-1] if entry.shape else 1
    view = data[entry.begin : entry.end].reshape(math.prod(entry.shape[:-1]), found.row_bytes(cols))
    return Tensor(found, entry.shape, view)


def merge_shards(files: Mapping[str, SafetensorsFile], index: Mapping[str, Any], index_name: str) -> TensorTable:
    """The tensors of several files by name, as the index's weight_map says which file holds which.

    Raises ModelFileError when index and files disagree about any name.
    """
    weight_map = read_weight_map(index, index_name)
    for shard, file in files.items():
        if unlisted := [name for name in file.tensors if weight_map.get(name) != shard]:
            found = f"tensor {unlisted[0]} of {shard} is listed under {weight_map.get(unlisted[0])!r}"
            raise ModelFileError(f"{index_name}: {found}, weight_map must name its file")
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            raise ModelFileError(f"{index_name}: tensor {name} is not in {shard}, weight_map must name its file")
    return TensorTable({name: partial(files[shard].tensors.__getitem__, name) for name, shard in weight_map.items()})


def read_weight_map(index: Mapping[str, Any], index_name: str) -> Mapping[str, str]:
    """Tensor name -> shard's file name. Raises ModelFileError unless shards are plain safetensors names."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index_name}: weight_map is {weight_map!r:.80}, an object of file names is expected")
    for shard in weight_map.values():
        is_plain = isinstance(shard, str) and PurePosixPath(shard).name == shard and not {"\\", "\0"} & set(shard)
        if not is_plain or not shard.endswith(".safetensors"):
            raise ModelFileError(f"{index_name}: weight_map names {shard!r:.80}, plain names *.safetensors are allowed")
    return weight_map
