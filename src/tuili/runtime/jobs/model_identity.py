"""What tells a model from another under the same name, without reading all of it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from tuili.errors import ModelFileError
from tuili.store.records import ModelFiles
from tuili.weights.gguf_parts import part_group

_SAMPLE_BYTES = 1 << 20
_LOADED = {".safetensors", ".gguf", ".json", ".jinja", ".model"}  # of a folder; a job may write others into it


def model_digest(files: ModelFiles) -> str:
    """A hex digest: of the manifest for a stored model, else of each file's name, size, time and both ends.

    Raises ModelFileError for a file that cannot be read.
    """
    if files.digest is not None:
        return files.digest
    try:
        seen: list[object] = [_seen(path) for path in _paths(files.path)]
    except OSError as error:
        raise ModelFileError(f"{files.path.name}: cannot be read: {error.strerror}") from error
    if files.modelfile is not None:
        seen.append(files.modelfile.digest)
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _paths(path: Path) -> list[Path]:
    """The files of a folder, or a file and the other parts of its model."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in _LOADED and file.is_file())
    group = part_group(path.name)
    if group == path.name:
        return [path]
    return sorted(file for file in path.parent.iterdir() if part_group(file.name) == group)


def _seen(path: Path) -> tuple[str, int, int, str]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(_SAMPLE_BYTES))
        file.seek(max(0, status.st_size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return ascii(path.name), status.st_size, status.st_mtime_ns, digest.hexdigest()
