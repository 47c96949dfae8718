"""The files of one model's folder, none of which may lead out of it.

A Hugging Face cache keeps a snapshot as links into the blobs beside it: those count as inside.
Knows paths and JSON; not what the files mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuili.errors import ModelFileError
from tuili.weights.json_file import parse_object

MAX_TEXT_BYTES = 64 << 20


class ModelDirectory:
    """Reads files of `path` by plain name. Raises ModelFileError for one that is linked elsewhere or too large."""

    __slots__ = ("_root", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        resolved = path.resolve()
        self._root = resolved.parent.parent if resolved.parent.name == "snapshots" else resolved

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return sorted(entry.name for entry in self.path.iterdir() if not entry.is_dir())

    def find(self, name: str) -> Path | None:
        """The file's path, or None when there is none of that name."""
        path = self.path / name
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(self._root):
            raise ModelFileError(f"{name}: links to a file outside the model's folder, which is not allowed")
        return path

    def text(self, name: str) -> str | None:
        """The content of a UTF-8 file, or None when there is none of that name."""
        data = self.read(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{name}: byte {error.start} is not UTF-8, text must be") from None

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object a file holds; {} when there is none of that name."""
        data = self.read(name)
        return {} if data is None else parse_object(data, name)

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None when there is none of that name."""
        path = self.find(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        except OSError as error:
            raise ModelFileError(f"{name}: cannot be read: {error.strerror}") from None
        if len(data) > MAX_TEXT_BYTES:
            raise ModelFileError(f"{name}: more than {MAX_TEXT_BYTES} bytes, which is the most allowed")
        return data
