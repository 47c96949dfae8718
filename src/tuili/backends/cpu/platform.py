"""What `doctor` shows of the processor, and what the C++ runtime makes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuili.backends.cpu import _native
from tuili.machine import ROOT, ThreadLimits, thread_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformReport:
    """What `doctor` shows of the processor."""

    cpu: str
    features: tuple[str, ...]
    isa: str
    threads: ThreadLimits


def report(root: Path = ROOT) -> dict[str, Any]:
    """PlatformReport as plain values."""
    return asdict(
        PlatformReport(
            cpu=_native.cpu_name(),
            features=tuple(_native.cpu_features()),
            isa=_native.best_isa(),
            threads=thread_limits(0, root),
        )
    )
