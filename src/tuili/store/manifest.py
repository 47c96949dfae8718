"""The record of one stored model: which files, from where, under which license. Knows its JSON form.

A manifest is written last, so a model is visible exactly when all its files are complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tuili.checks import shown
from tuili.errors import ModelFileError

FORMAT = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 2**63 - 1
MAX_TIME_S = 253_402_300_799  # the last second that a calendar of four-digit years has
_OPTIONAL = ("folder", "revision", "license", "quantization", "copied_from")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file of a model; sha256 is None where its source did not say."""

    name: str
    num_bytes: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A stored model. `folder` None means the store's own blobs; else the files lie there, in place.

    `created` is seconds since the epoch. A model of one file is that file; of several, the folder. `copied_from` is the
    name that a copy's files were pulled under.
    """

    name: str
    source: str
    files: tuple[FileRecord, ...]
    created: int
    folder: str | None = None
    revision: str | None = None
    license: str | None = None
    quantization: str | None = None
    copied_from: str | None = None

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    @property
    def digest(self) -> str | None:
        """Hex digest of what the files hold; None where neither a revision nor checksums tell."""
        if self.revision is None and any(file.sha256 is None for file in self.files):
            return None
        held = [self.revision, sorted((file.name, file.num_bytes, file.sha256 or "") for file in self.files)]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def read_manifest(path: Path) -> Manifest:
    """Reads and checks a manifest. Raises FileNotFoundError, or ModelFileError naming the field."""
    data = _read(path)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ModelFileError(f"manifest {path.stem} has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"manifest is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelFileError(f"manifest must be a JSON object, found {type(fields).__name__}")
    if fields.get("format") != FORMAT:
        raise ModelFileError(f"manifest format must be {FORMAT}, found {fields.get('format')!r}: upgrade tuili?")
    return _checked(fields)


def _read(path: Path) -> bytes:
    """The file as far as it may go. Raises as read_manifest does."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would block in open()
            raise ModelFileError("manifest is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelFileError("manifest is a link to nothing") from None
        raise
    except OSError as error:
        raise ModelFileError(f"manifest cannot be read: {error.strerror}") from error


def _checked(fields: dict[str, Any]) -> Manifest:
    optional = {name: _field(fields, name, str, None) for name in _OPTIONAL}
    files = fields.get("files")
    if not isinstance(files, list) or not files or not all(isinstance(file, dict) for file in files):
        raise ModelFileError(f"manifest field files must be a list of objects, found {files!r:.100}")
    if optional["folder"] is None and (len(files) != 1 or files[0].get("sha256") is None):
        raise ModelFileError("manifest without a folder must have one file with a sha256")
    return Manifest(
        name=_field(fields, "name", str),
        source=_field(fields, "source", str),
        files=tuple(_checked_file(file) for file in files),
        created=_number(fields, "created", MAX_TIME_S),
        **optional,
    )


def _checked_file(fields: dict[str, Any]) -> FileRecord:
    record = FileRecord(
        name=_field(fields, "name", str),
        num_bytes=_number(fields, "num_bytes", MAX_FILE_BYTES),
        sha256=_field(fields, "sha256", str, None),
    )
    path = PurePosixPath(record.name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in record.name:
        raise ModelFileError(f"manifest names a file outside its folder: {record.name!a:.200}")
    if record.sha256 is not None and not _SHA256.fullmatch(record.sha256):
        raise ModelFileError(f"manifest field sha256 must be 64 lower-case hex digits, found {record.sha256!a:.100}")
    return record


def _field(fields: dict[str, Any], name: str, kind: type, *default: None) -> Any:
    value = fields.get(name)
    if value is None and default:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelFileError(f"manifest field {name} must be {kind.__name__}, found {value!r:.100}")
    return value


def _number(fields: dict[str, Any], name: str, most: int) -> int:
    value: int = _field(fields, name, int)
    if not 0 <= value <= most:
        raise ModelFileError(f"manifest field {name} must be in [0, {most}], found {shown(value)}")
    return value
