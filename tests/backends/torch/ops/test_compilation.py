"""Kernels compile for an H200 without one: what the interpreter does not see (types, shared memory, instructions)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
SHARED_BYTES = 227 * 1024  # of a block on capability 9.0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the assembler in Triton's wheel")
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """TUILI_COMPILE_ALL=1 takes minutes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    which = ["all"] if os.environ.get("TUILI_COMPILE_ALL") else []
    command = [sys.executable, str(HERE / "compile_kernels.py"), *which]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    assert {kernel["kernel"] for kernel in found} >= {
        *("prefill_kernel", "decode_kernel", "merge_kernel", "norm_kernel", "gemv_kernel"),
        "gemm_kernel",
    }
    for kernel in found:
        assert kernel["shared_bytes"] <= SHARED_BYTES, kernel["kernel"]
        assert kernel["stack_bytes"] == 0, f"{kernel['kernel']} spills"
    text = {kernel["kernel"]: kernel["ptx"] for kernel in reversed(found)}  # the first of each: in bfloat16
    assert "wgmma" in text["prefill_kernel"]
    assert "mma.sync" in text["decode_kernel"]
    assert "cp.async" in text["gemv_kernel"]
