"""What a driver's library is asked about a GPU, by a library that is made up."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from tuili.runtime.devices.gpu_memory import GpuMemory, gpu_memory


class Library:
    """Two GPUs, and one known by its uuid."""

    def __init__(self) -> None:
        self.is_open = False
        self.refuses = False
        self.asked: list[object] = []

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.is_open = not self.refuses
        return int(self.refuses)

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.is_open = False
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, buffer: Any, size: Any) -> int:  # noqa: N802
        buffer.value = (b"GPU-1a2b-3c", b"GPU-1a2c-4d")[handle.value or 0]
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        self.asked.append(index.value)
        handle._obj.value = index.value
        return int(index.value > 1)

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:  # noqa: N802
        self.asked.append(name)
        return int(name != b"GPU-5")

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        memory._obj.total, memory._obj.free, memory._obj.used = 100, 30, 70
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    return made


@pytest.mark.parametrize(
    ("device", "visible", "asked"),
    [
        (None, None, 0),
        ("auto", None, 0),
        ("cuda", None, 0),
        ("cuda:1", None, 1),
        ("cuda:1", "3, 1", 1),
        ("cuda", "GPU-5,0", b"GPU-5"),
        ("cuda:1", "GPU-5, 1,-1", 1),
        ("cuda:1", "0,GPU-1a2c", 1),  # of which CUDA takes the beginning
    ],
)
def test_a_gpu_is_found_as_torch_counts_them(
    library: Library, device: str | None, visible: str | None, asked: object
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_memory(device, environ) == GpuMemory(free_bytes=30, total_bytes=100)
    assert library.asked[-1] == asked
    assert not library.is_open


@pytest.mark.parametrize(
    ("device", "visible"),
    [
        ("cuda:2", None),
        ("cuda", ""),
        ("cuda:1", "0"),
        ("xpu", None),
        ("cuda:1", "0,-1,1"),
        ("cuda:2", "0,-1,1"),
        ("cuda", "GPU-1a2"),
        ("cuda", "GPU-9"),
    ],
)
def test_of_other_devices_nothing_is_known(library: Library, device: str, visible: str | None) -> None:
    assert gpu_memory(device, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) is None
    assert not library.is_open


def test_without_a_driver_nothing_is_known(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.refuses = True
    assert gpu_memory(None, {}) is None

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_memory(None, {}) is None
