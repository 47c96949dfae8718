"""A GGUF model in one file or in several, `name-00001-of-0000N.gguf`: metadata from the first, tensors from all.

Knows how parts are named and numbered; no model. Source: llama.cpp's gguf-split (split.no, split.count).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tuili.errors import ModelFileError
from tuili.quant.format import Tensor
from tuili.weights.gguf import GgufFile
from tuili.weights.gguf_metadata import Value
from tuili.weights.model_directory import ModelDirectory

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufContents:
    """path: of the file, or of the first part. num_bytes: of all parts."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    num_bytes: int


def read_gguf(path: Path) -> GgufContents:
    """Opens a file and, where it is one part of a model, the others beside it; any part may be given.

    Raises what GgufFile raises, and ModelFileError naming a part that is missing or belongs to another model.
    """
    file = GgufFile(first_part(path))
    count = file.metadata.get(_COUNT, 1)
    if count in (0, 1):
        return GgufContents(path=file.path, metadata=file.metadata, tensors=file.tensors, num_bytes=file.num_bytes)
    files = _open_parts(file, _part_names(file, count))
    for index, part in enumerate(files):
        _check_part(part, index, len(files))
    tensors = _merged(files)
    total = file.metadata.get(_TENSORS, len(tensors))
    if total != len(tensors):
        raise ModelFileError(f"{file.path.name}: {_TENSORS} is {total!r:.40}, the parts hold {len(tensors)} tensors")
    num_bytes = sum(part.num_bytes for part in files)
    return GgufContents(path=file.path, metadata=file.metadata, tensors=MappingProxyType(tensors), num_bytes=num_bytes)


def first_part(path: Path) -> Path:
    """The first part of the model that a file of this name is a part of; the file itself where there is none."""
    match = _PART.fullmatch(path.name)
    first = path if match is None else path.with_name(_name(match, 1))
    return first if first.is_file() else path


def all_parts(name: str) -> list[str]:
    """The names of all files of the model that a file of this name is a part of; only itself where it is none."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [name]
    return _names(match)


def part_group(name: str) -> str:
    """What all parts of a model share, and nothing else does: "q4" of "q4-00002-of-00003.gguf", else the name."""
    match = _PART.fullmatch(name)
    return name if match is None else f"{match['stem']}-of-{match['count']}"


def _part_names(file: GgufFile, count: Value) -> list[str]:
    """The names of all parts. Raises ModelFileError for a name that does not number this part among `count`."""
    match = _PART.fullmatch(file.path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"{file.path.name}: one of {count!r:.20} parts ({_COUNT}), its name must end in -00001-of-0000N.gguf"
        )
    return _names(match)


def _open_parts(known: GgufFile, names: Sequence[str]) -> list[GgufFile]:
    directory = ModelDirectory(known.path.parent)
    files = []
    for name in names:
        if name == known.path.name:
            files.append(known)
            continue
        found = directory.find(name)
        if found is None:
            raise ModelFileError(f"{name}: missing, the model needs all its {len(names)} parts")
        files.append(GgufFile(found))
    return files


def _names(match: re.Match[str]) -> list[str]:
    return [_name(match, number + 1) for number in range(int(match["count"]))]


def _name(match: re.Match[str], number: int) -> str:
    """The name of another part: only the number differs, so that the suffix keeps its case."""
    return match.string[: match.start("number")] + f"{number:05}" + match.string[match.end("number") :]


def _check_part(part: GgufFile, index: int, count: int) -> None:
    for key, expected in ((_NUMBER, index), (_COUNT, count)):
        if (found := part.metadata.get(key)) != expected:
            raise ModelFileError(f"{part.path.name}: {key} is {found!r:.40}, {expected} belongs there")


def _merged(files: Sequence[GgufFile]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in files:
        if twice := tensors.keys() & part.tensors.keys():
            raise ModelFileError(f"{part.path.name}: tensor {min(twice)} is in an earlier part, one is allowed")
        tensors |= part.tensors
    return tensors
