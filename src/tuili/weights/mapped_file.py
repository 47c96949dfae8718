"""Opens model files: mapped into memory read-only, regular files only, formats that execute code refused.

Knows paths and first bytes; not what the bytes mean.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np

from tuili.errors import ModelFileError, ModelNotFoundError
from tuili.quant.format import Bytes

EXECUTABLE_SUFFIXES = frozenset((".bin", ".ckpt", ".mdl", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"))
REFUSAL = "refused: executable format; convert to safetensors"


def refuse_executable(path: Path) -> None:
    """Raises ModelFileError for a name under which pickled Python objects are kept."""
    if path.suffix.lower() in EXECUTABLE_SUFFIXES:
        raise ModelFileError(f"{path.name}: {REFUSAL}")


def file_stamps(path: Path) -> frozenset[tuple[str, int, int, int]]:
    """Name, size, time of change and inode of a model's file, or of those in its folder: others mean it was changed."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return frozenset((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def map_file(path: Path) -> Bytes:
    """The whole file as a read-only uint8 array. The mapping lives as long as any view of it.

    The file must not shrink meanwhile: the kernel answers a read past its end with SIGBUS, which ends the process.
    Removing it or renaming another over it is safe.
    Raises ModelNotFoundError when there is no such file; ModelFileError when it is empty, no regular
    file, unreadable, or pickled Python objects under another name.
    """
    refuse_executable(path)
    try:
        # A named pipe would block in open(), so its kind is asked first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path.name}: not a regular file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelFileError(f"{path.name}: 0 bytes, a model file is not empty")
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.name}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path.name}: cannot be read: {error.strerror}") from None
    if _looks_pickled(data[:9].tobytes()):
        raise ModelFileError(f"{path.name}: {REFUSAL}")
    return data


def _looks_pickled(head: bytes) -> bool:
    """Pickle protocols 2 to 5, or the zip archive and NumPy file that may wrap them, by a file's first nine bytes.

    The length that a safetensors file starts with may be the same bytes; its header follows, and none of theirs.
    """
    is_pickle = len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5
    return (is_pickle or head[:4] in (b"PK\x03\x04", b"\x93NUM")) and head[8:] != b"{"
