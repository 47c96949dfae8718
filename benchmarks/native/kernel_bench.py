"""Single-thread speed of the matmul kernels: integer operations and weight bytes per second, by format and row count.

Knows the native module alone. Weights are random bytes with small scales; the speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from tuili.backends.cpu import _native

KERNELS: Any = _native.kernels  # type: ignore[attr-defined]

# Bytes of a GGUF block, weights in it, and where its float16 scales lie.
BLOCKS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "Q4_0": (18, 32, (0,)),
    "Q4_1": (20, 32, (0, 2)),
    "Q5_0": (22, 32, (0,)),
    "Q5_1": (24, 32, (0, 2)),
    "Q8_0": (34, 32, (0,)),
    "Q2_K": (84, 256, (80, 82)),
    "Q3_K": (110, 256, (108,)),
    "Q4_K": (144, 256, (0, 2)),
    "Q5_K": (176, 256, (0, 2)),
    "Q6_K": (210, 256, (208,)),
    "IQ4_NL": (18, 32, (0,)),
    "IQ4_XS": (136, 256, (0,)),
    "BF16": (2, 1, ()),
    "F32": (4, 1, ()),
}


def random_matrix(name: str, rows: int, cols: int) -> Any:
    """Random weights as `_native.kernels.Matrix`."""
    block_bytes, weights, halves = BLOCKS[name]
    source = np.random.default_rng(0).integers(0, 256, (rows, cols // weights, block_bytes), dtype=np.uint8)
    for at in halves:
        source[:, :, at : at + 2] = np.array([0x00, 0x24], np.uint8)  # 2^-6
    if not halves:
        source[:] = 0
    return KERNELS.Matrix(name, source.reshape(rows, -1), cols)


def seconds_per_call(isa: str, matrix: Any, inputs: Any, num_rows: int, budget_s: float) -> float:
    """The best of as many calls as fit the budget: the machine's other work only ever adds time."""
    best = float("inf")
    deadline = time.perf_counter() + budget_s
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        KERNELS.matmul(isa, matrix, inputs, 0, num_rows)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", nargs="*", default=list(KERNELS.available_isas())[-1:])
    parser.add_argument("--formats", nargs="*", default=list(BLOCKS))
    parser.add_argument("--num-rows", nargs="*", type=int, default=[1, 4, 16, 128])
    parser.add_argument("--rows", type=int, default=8192, help="weight rows")
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--budget-s", type=float, default=0.5, help="seconds per measurement")
    args = parser.parse_args()
    print(f"{'isa':8} {'format':6} {'M':>4} {'Gop/s':>8} {'GB/s':>7}")
    for name in args.formats:
        matrix = random_matrix(name, args.rows, args.cols)
        values = np.random.default_rng(1).standard_normal((max(args.num_rows), args.cols), np.float32)
        for isa in args.isa:
            inputs = KERNELS.Inputs(isa, values)
            for num_rows in args.num_rows:
                seconds = seconds_per_call(isa, matrix, inputs, num_rows, args.budget_s)
                operations = 2 * num_rows * args.rows * args.cols
                speed, bandwidth = operations / seconds / 1e9, matrix.num_bytes / seconds / 1e9
                print(f"{isa:8} {name:6} {num_rows:4} {speed:8.1f} {bandwidth:7.1f}")


if __name__ == "__main__":
    main()
