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
from tuili.backends.cpu import _native

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


def read_bandwidth_gb_s(num_threads: int = 2, num_bytes: int = 256 << 20, seconds: float = 0.3) -> float:
    """What `num_threads` together read from memory, now."""
    return float(_native.read_bandwidth(num_threads, num_bytes, seconds)) / 1e9


def peak_int8_ops(num_threads: int = 2, seconds: float = 0.3) -> float:
    """Operations per second (two per multiply-add) of int8 dot products by the best instructions at hand, now."""
    return float(_native.peak_ops(num_threads, seconds)["int8"])


def save(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Writes benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), "settings": _portable(settings), "rows": rows}, indent=1) + "\n")
    return path


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Paths by their last part: where files lie is of no use to others."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in settings.items()
    }
