"""Takes sound GGUF files apart, and models into several files."""

from __future__ import annotations

import struct
from typing import Any

from support import gguf_bytes as g
from support.gguf_models import ALIGNMENT, GgufModel, Pair, num_data_bytes


class _Reader:
    """Reads GGUF as the format says it; these files are sound."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def number(self, kind: int) -> Any:
        code = f"<{g.CODES[kind]}"
        (value,) = struct.unpack_from(code, self.content, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> str:
        length = self.number(g.UINT64)
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        return self.text() if kind == g.STRING else self.number(kind)

    def pair(self) -> Pair:
        key, kind = self.text(), self.number(g.UINT32)
        if kind != g.ARRAY:
            return Pair(key, kind, self.value(kind))
        element, count = self.number(g.UINT32), self.number(g.UINT64)
        return Pair(key, kind, [self.value(element) for _ in range(count)], element)

    def entry(self) -> g.Entry:
        name, num_dims = self.text(), self.number(g.UINT32)
        dims = tuple(self.number(g.UINT64) for _ in range(num_dims))
        return g.Entry(name, dims, self.number(g.UINT32), self.number(g.UINT64))


def parse(content: bytes) -> GgufModel:
    """A sound file taken apart."""
    reader = _Reader(content[8:])
    num_tensors, num_pairs = reader.number(g.UINT64), reader.number(g.UINT64)
    pairs = tuple(reader.pair() for _ in range(num_pairs))
    entries = tuple(reader.entry() for _ in range(num_tensors))
    start = -(-(reader.at + 8) // ALIGNMENT) * ALIGNMENT
    data = tuple(content[start + entry.offset :][: num_data_bytes(entry)] for entry in entries)
    return GgufModel(pairs, entries, data)


def split(model: GgufModel, count: int) -> list[GgufModel]:
    """The same model in `count` files, the first with all pairs."""
    parts = []
    for number in range(count):
        own = (
            Pair("split.no", g.UINT16, number),
            Pair("split.count", g.UINT16, count),
            Pair("split.tensors.count", g.INT32, len(model.entries)),
        )
        parts.append(
            GgufModel(
                (*(model.pairs if number == 0 else ()), *own), model.entries[number::count], model.data[number::count]
            ).settled()
        )
    return parts


def part_name(number: int, count: int) -> str:
    """What the file of part `number`, from 1, is called."""
    return f"model-{number:05d}-of-{count:05d}.gguf"
