"""What the figures were measured on: GPU, driver, versions, and the limits that shares are of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator

import torch
from benchmarks.gpu.measures import limits
from benchmarks.gpu.records import Record, Recorder, stage_arguments

_PACKAGES = ("numpy", "torch", "triton", "transformers", "safetensors", "matplotlib")


def machine(device: torch.device) -> Iterator[Record]:
    gpu = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "gpu": properties.name,
            "gpu_memory_gib": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    versions = {name: _version(name) for name in _PACKAGES}
    yield {
        "name": "machine", **gpu, "python": platform.python_version(), **versions, "cores": os.cpu_count(),
        "commit": _output("git", "rev-parse", "--short", "HEAD"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def rates(device: torch.device) -> Iterator[Record]:
    found = limits(device)
    yield {"name": "copy, read and written", "value": found.bytes_per_s / 1e9, "unit": "GB/s"}
    yield {"name": "bfloat16 product", "value": found.operations_per_s / 1e12, "unit": "TFLOP/s"}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def main() -> int:
    arguments = stage_arguments(__doc__).parse_args()
    recorder, device = Recorder(arguments.records), torch.device(arguments.device)
    recorder.attempt("machine", lambda: machine(device))
    recorder.attempt("rates", lambda: rates(device))
    return 1 if recorder.num_failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
