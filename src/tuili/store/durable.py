"""File writes that survive a power cut: synced before they are renamed, and the folder synced after.

Also says what a full or read-only disk means to a user. Knows nothing of models.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuili.errors import InsufficientStorageError

UNFINISHED = ".new-"  # what files are called while they are being written
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
}


def is_storage_error(error: OSError) -> bool:
    """Whether it was the disk or its permissions that refused, rather than a network."""
    return error.errno in _FULL | _REFUSED


@contextmanager
def storage_errors(
    what: str = "the model store", remedy: str = "or name another folder with TUILI_HOME"
) -> Iterator[None]:
    """Turns the operating system's refusals to write into InsufficientStorageError. `what` is being written to."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorageError(f"the disk of {what} is full: free some space, {remedy}") from error
        if error.errno in _REFUSED | {errno.EINVAL}:  # a lock that is no file
            raise InsufficientStorageError(
                f"{what} cannot be used ({os.strerror(error.errno)}): see to its folder, {remedy}"
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Creates a folder and its parents, each entered durably into the one above."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames and removals in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(part: Path, final: Path) -> None:
    """Moves a complete file to its final name: contents first, then the name."""
    make_folder(final.parent)
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(final)
    sync_folder(final.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a small file so that a reader sees the old or the new contents, nothing between."""
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        publish(Path(name), path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
