"""Compiles what launchers launch, for a GPU that is not there: a launch becomes a compilation to machine code.

The interpreter checks numbers; types, shapes of matrix products, shared memory and vector widths show only here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import jit

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float8_e4m3fn: "*fp8e4nv",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True, slots=True)
class Compiled:
    kernel: str
    shared_bytes: int
    registers: int
    stack_bytes: int
    ptx: str


@contextmanager
def compiling(target: GPUTarget = HOPPER) -> Iterator[list[Compiled]]:
    """Launches within compile instead; what came out is in the list."""
    found: list[Compiled] = []
    original = jit.JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert all(1 <= n < 65536 or axis == 0 for axis, n in enumerate(grid)), f"{self.__name__}: grid {grid}"
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        assert set(values) == set(self.arg_names)
        found.append(_compiled(self, values, options, target))

    jit.JITFunction.run = run
    try:
        yield found
    finally:
        jit.JITFunction.run = original


def _compiled(kernel: Any, values: dict[str, Any], options: dict[str, int], target: GPUTarget) -> Compiled:
    signature, constants, attributes = {}, {}, {}
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        is_special = not parameter.do_not_specialize
        if parameter.is_constexpr or (is_special and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        is_aligned = isinstance(value, torch.Tensor) or (is_special and isinstance(value, int) and value % 16 == 0)
        if is_aligned and not parameter.do_not_specialize_on_alignment:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=target, options=options)
    registers, stack = _resources(binary.asm["cubin"])
    return Compiled(kernel.__name__, binary.metadata.shared, registers, stack, binary.asm["ptx"])


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int), value
    return "i32" if -(2**31) <= value < 2**31 else "i64"


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
