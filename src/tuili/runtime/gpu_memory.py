"""How much memory an NVIDIA GPU has and has left, asked of its driver's library. No torch, no context there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

_LIBRARY = "libnvidia-ml.so.1"


class GpuMemory(NamedTuple):
    """Bytes of one GPU, with what any process has."""

    free_bytes: int
    total_bytes: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpu_memory(device: str | None, environ: Mapping[str, str] = os.environ) -> GpuMemory | None:
    """Of "cuda", "cuda:N" or the first one there is, as torch counts them; None where the driver does not tell."""
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
    """Which GPU of the machine the process's GPU of that number is: a number or a uuid; None: there is none."""
    if devices is None:
        return str(index)
    names = [name.strip() for name in devices.split(",")]
    return names[index] or None if index < len(names) else None


def _asked(library: Any, name: str | None) -> GpuMemory | None:
    handle, memory = ctypes.c_void_p(), _Memory()
    if name is None:
        return None
    if name.isdecimal():
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
    else:
        failed = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    if failed or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    return GpuMemory(memory.free, memory.total)
