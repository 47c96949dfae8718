"""How much memory an NVIDIA GPU has and has left, asked of its driver's library. No torch, no context there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

_LIBRARY = "libnvidia-ml.so.1"
_UUID_BYTES = 96


class GpuMemory(NamedTuple):
    """Bytes of one GPU, with what any process has."""

    free_bytes: int
    total_bytes: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpu_memory(device: str | None, environ: Mapping[str, str] = os.environ) -> GpuMemory | None:
    """Of "cuda", "cuda:N" or the first one there is, as torch counts them; None where the driver does not tell.

    The driver has GPUs in the order of their places on the bus, as torch has those that are alike.
    """
    kind, _, number = (device or "auto").partition(":")
    if kind not in ("auto", "cuda"):
        return None
    try:
        library: Any = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    if library.nvmlInit_v2():
        return None
    try:
        return _asked(library, _visible(int(number or 0), environ.get("CUDA_VISIBLE_DEVICES")))
    finally:
        library.nvmlShutdown()


def _visible(index: int, devices: str | None) -> str | None:
    """Which GPU of the machine the process's GPU of that number is: a number or a uuid; None: there is none.

    What is no GPU's name ends the list, as CUDA reads it.
    """
    if devices is None:
        return str(index)
    names = [name.strip() for name in devices.split(",")]
    known = list(takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))
    return known[index] if index < len(known) else None


def _asked(library: Any, name: str | None) -> GpuMemory | None:
    if name is None:
        return None
    handle, memory = ctypes.c_void_p(), _Memory()
    if name.isdecimal():
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
    elif failed := library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)):
        failed = _find_by_prefix(library, name, handle)
    if failed or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    return GpuMemory(memory.free, memory.total)


def _find_by_prefix(library: Any, prefix: str, handle: ctypes.c_void_p) -> int:
    """The GPU whose uuid begins so, which is enough for CUDA; 0 where there is just one."""
    count, found = ctypes.c_uint(), []
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return 1
    for index in range(count.value):
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
        if not (failed or library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(_UUID_BYTES))):
            found += [index] * uuid.value.decode().startswith(prefix)
    if len(found) != 1:
        return 1
    failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(found[0]), ctypes.byref(handle))
    return int(failed)
