"""What launchers launch, on a GPU that is not there: by Triton's own specialization, compiled to machine code if asked.

The interpreter checks numbers; types, shapes of matrix products, shared memory, vector widths and how often a kernel
is compiled show only here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import jit
from triton.runtime.driver import driver

HOPPER = GPUTarget("cuda", 90, 32)
_DEVICES = count(1000)  # each with kernels of its own


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel for types, constants and alignments, which Triton compiles once."""

    kernel: str
    source: ASTSource
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Compiled:
    kernel: str
    shared_bytes: int
    registers: int
    stack_bytes: int
    ptx: str


class _Gpu:
    """As much of a driver as a launch asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target, self._device = target, next(_DEVICES)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0


class _Kernel:
    """What is launched: nothing, on a grid that a GPU would take."""

    function = packed_metadata = None

    def launch_metadata(self, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        _, y, z = args[:3]
        assert 1 <= y < 65536 > z >= 1, f"grid {args[:3]}"


@contextmanager
def launching(target: GPUTarget = HOPPER) -> Iterator[list[Variant]]:
    """Launches within compute nothing; what each would have compiled is in the list, once."""
    found: list[Variant] = []

    def keep(
        kernel: Any, key: str, signature: Any, device: int, constants: Any, options: Any, attributes: Any, _: bool
    ) -> Any:
        variant = Variant(kernel.__name__, ASTSource(kernel, signature, constants, attributes), options.__dict__)
        found.append(variant)
        return kernel.device_caches[device][0].setdefault(key, _Kernel())

    original, before = jit.JITFunction._do_compile, driver._active
    jit.JITFunction._do_compile = keep
    driver.set_active(_Gpu(target))
    try:
        yield found
    finally:
        jit.JITFunction._do_compile, driver._active = original, before


def compiled(variant: Variant, target: GPUTarget = HOPPER) -> Compiled:
    binary = triton.compile(variant.source, target=target, options=variant.options)
    registers, stack = _resources(binary.asm["cubin"])
    return Compiled(variant.kernel, binary.metadata.shared, registers, stack, binary.asm["ptx"])


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes it spills."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    file = Path("/tmp") / f"tuili-{id(cubin)}.cubin"
    file.write_bytes(cubin)
    try:
        command = [str(tool), "--dump-resource-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        file.unlink()
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])
