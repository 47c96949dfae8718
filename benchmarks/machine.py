"""What every figure must be read with: machine, versions, settings. Writes results beside them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

import tuili

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, cores allowed, memory, versions, and the commit measured."""
    return {
        "cpu": _cpu_name(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "read_bandwidth_gb_s": round(read_bandwidth_gb_s(), 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tuili": tuili.__version__,
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
    }


def read_bandwidth_gb_s(num_bytes: int = 512 << 20) -> float:
    """Sum over a large array by one thread: a floor for what memory gives, good for comparing moments."""
    values = np.ones(num_bytes // 8)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - start)
    return num_bytes / best / 1e9


def save(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Writes benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), "settings": settings, "rows": rows}, indent=1) + "\n")
    return path


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
