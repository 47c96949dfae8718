"""Kernels compile for an H200 without one: what the interpreter does not see (types, shared memory, instructions)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
SHARED_BYTES = 227 * 1024  # of a block on capability 9.0


def told_by(script: str, cache: Path, *arguments: str) -> Any:
    """What a script printed that Triton compiles in, instead of interpreting."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs the assembler in Triton's wheel")
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """TUILI_COMPILE_ALL=1 takes minutes."""
    which = ["all"] if os.environ.get("TUILI_COMPILE_ALL") else []
    found = told_by("compile_kernels.py", tmp_path, *which)
    assert {kernel["kernel"] for kernel in found} >= {
        *("prefill_kernel", "decode_kernel", "merge_kernel", "norm_kernel", "gemv_kernel"),
        *("gemm_kernel", "one_row_kernel"),
    }
    for kernel in found:
        assert kernel["shared_bytes"] <= SHARED_BYTES, kernel["kernel"]
        assert kernel["stack_bytes"] == 0, f"{kernel['kernel']} spills"
    text = {kernel["kernel"]: kernel["ptx"] for kernel in reversed(found)}  # the first of each: in bfloat16
    assert "wgmma" in text["prefill_kernel"]
    assert "mma.sync" in text["decode_kernel"]
    assert "cp.async" in text["gemv_kernel"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs Triton's wheel")
def test_kernels_are_compiled_for_a_model_and_not_for_sizes_of_steps(tmp_path: Path) -> None:
    """A server would stand still for seconds, whenever a number was 1 or a multiple of 16 for the first time."""
    rounds = told_by("count_variants.py", tmp_path, "F32")
    kernels = {"norm_kernel": 2, "heads_kernel": 1, "prefill_kernel": 1, "decode_kernel": 1, "merge_kernel": 1}
    assert rounds == [kernels | {"activation_kernel": 1}] * len(rounds)
