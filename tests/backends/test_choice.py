"""Which backend computes where nobody says, on machines as they might be. torch is asked where it may see a GPU."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tuili.backends as backends
from tuili.backends import choose_backend, expected_backend


class Machine:
    """What the choice looks at, and how often torch was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch = monkeypatch
        self._driver = folder / "driver"
        self.num_asked = 0
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(backends, "_DRIVERS", (str(self._driver),))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        self.gives(False)

    def gives(self, has_gpu: bool) -> None:
        """What torch says."""

        def asked() -> bool:
            self.num_asked += 1
            return has_gpu

        class Devices:
            has_gpu = staticmethod(asked)

        self._patch.setattr(importlib, "import_module", lambda name: Devices)

    def has_a_driver(self) -> None:
        self._driver.touch()

    def is_a(self, system: str, processor: str) -> None:
        self._patch.setattr(sys, "platform", system)
        self._patch.setattr(platform, "machine", lambda: processor)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_without_a_driver_torch_is_not_asked(machine: Machine) -> None:
    machine.gives(True)
    assert (choose_backend(None, None), expected_backend(None, "auto")) == ("cpu", "cpu")
    assert machine.num_asked == 0


@pytest.mark.parametrize(("has_gpu", "expected"), [(True, "torch"), (False, "cpu")])
def test_with_a_driver_torch_tells(machine: Machine, has_gpu: bool, expected: str) -> None:
    machine.has_a_driver()
    machine.gives(has_gpu)
    assert choose_backend(None, None) == choose_backend(None, "auto") == expected
    assert machine.num_asked == 2
    assert expected_backend(None, None) == "torch"  # as far as can be told without asking
    assert machine.num_asked == 2


def test_without_torch_there_is_no_question(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has_a_driver()
    machine.gives(True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend(None, None) == "cpu"
    assert machine.num_asked == 0


@pytest.mark.parametrize(("visible", "expected"), [("", "cpu"), ("-1", "cpu"), ("1", "torch")])
def test_hidden_gpus_are_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str, expected: str
) -> None:
    machine.has_a_driver()
    machine.gives(True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_backend(None, None) == expected
    assert machine.num_asked == (expected == "torch")


@pytest.mark.parametrize(("processor", "expected"), [("arm64", "torch"), ("x86_64", "cpu")])
def test_macs_with_a_gpu_of_their_own(machine: Machine, processor: str, expected: str) -> None:
    machine.is_a("darwin", processor)
    machine.gives(True)
    assert choose_backend(None, None) == expected


def test_on_windows_the_driver_is_a_library(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.is_a("win32", "AMD64")
    machine.gives(True)
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    assert choose_backend(None, None) == "cpu"
    (tmp_path / "System32").mkdir()
    (tmp_path / "System32/nvcuda.dll").touch()
    assert choose_backend(None, None) == "torch"


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("cpu", None, "cpu"), ("torch", "cpu", "torch"), (None, "cpu", "cpu"), (None, "cuda:1", "torch")],
)
def test_what_is_said_holds(machine: Machine, name: Any, device: Any, expected: str) -> None:
    assert choose_backend(name, device) == expected_backend(name, device) == expected
    assert machine.num_asked == 0


def test_loading_without_a_gpu_imports_no_torch() -> None:
    code = (
        "import sys, tuili.backends as b; b._DRIVERS = (); sys.platform = 'linux'\n"
        "from tuili.runtime.loading.load_options import LoadOptions, resolved\n"
        "import tuili.runtime.loading.loading\n"
        "print(resolved(LoadOptions()).backend, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "cpu False", found.stderr
