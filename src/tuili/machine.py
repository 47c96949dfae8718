"""What this machine lets a process use: processors by affinity, control group and cores, and memory.

Reads /proc and /sys; functions that do take the root those lie under. Knows nothing of models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_UNLIMITED_BYTES = 1 << 62  # version 1 writes the largest number of pages where there is no limit


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadLimits:
    """Why a step runs on `num_threads`: the least of what limits it, unless it was given."""

    num_threads: int
    reason: str
    affinity: int  # logical processors this process may run on
    cores: int  # distinct physical cores among them
    quota: float | None  # processors' worth of time the control group grants


def thread_limits(requested: int, root: Path = ROOT) -> ThreadLimits:
    """`requested` threads, or as many as affinity, control group and physical cores all allow when it is 0."""
    cpus = _affinity()
    cores, quota = physical_cores(cpus, root), cpu_quota(root)
    limits = {"affinity": len(cpus), "physical cores": cores}
    if quota is not None:
        limits["control group quota"] = max(1, math.floor(quota))
    reason, num_threads = min(limits.items(), key=lambda item: item[1])
    if requested > 0:
        reason, num_threads = "requested", requested
    return ThreadLimits(num_threads=num_threads, reason=reason, affinity=len(cpus), cores=cores, quota=quota)


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: frozenset[int], root: Path = ROOT) -> int:
    """Distinct (package, core) pairs among logical processors; all of them where the system does not say."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        if package is None or core is None:
            return len(cpus)
        cores.add((package, core))
    return len(cores)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time this control group and its ancestors grant (versions 1 and 2); None is no limit."""
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return min(quotas, default=None)


def _quotas_v2(root: Path) -> Iterator[float]:
    for folder in _cgroup_folders(root, ""):
        fields = (_read(folder / "cpu.max") or "max").split()
        if len(fields) == 2 and fields[0] != "max":
            yield int(fields[0]) / int(fields[1])


def _quotas_v1(root: Path) -> Iterator[float]:
    for folder in _cgroup_folders(root, "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and int(quota) > 0:
            yield int(quota) / int(period)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimits:
    """Bytes that may still be taken, and who sets that limit."""

    free_bytes: int
    reason: str  # "the system" or "control group"
    group_limit_bytes: int | None  # the least limit of this control group and its ancestors; None is none


def memory_limits(root: Path = ROOT) -> MemoryLimits:
    """What the system has left, or what a control group has if that is less (versions 1 and 2)."""
    left, limits = {"the system": _system_memory(root)}, []
    for limit, free in _group_memory(root):
        limits.append(limit)
        left["control group"] = min(free, left.get("control group", free))
    reason, free_bytes = min(left.items(), key=lambda item: item[1])
    return MemoryLimits(free_bytes=free_bytes, reason=reason, group_limit_bytes=min(limits, default=None))


def available_memory(root: Path = ROOT) -> int:
    """Bytes that may still be taken."""
    return memory_limits(root).free_bytes


def _group_memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of each control group that has one."""
    for controller, limit_name, usage_name in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder in _cgroup_folders(root, controller):
            limit, usage = _read(folder / limit_name), _read(folder / usage_name)
            if limit is not None and usage is not None and limit != "max" and int(limit) < _UNLIMITED_BYTES:
                yield int(limit), max(0, int(limit) - int(usage) + _reclaimable(folder))


def _system_memory(root: Path) -> int:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    import psutil  # slow to import, and needed only where the system does not say it in a file

    return psutil.virtual_memory().available


def process_memory(root: Path = ROOT, process_id: int | None = None) -> tuple[int, int]:
    """Bytes of a process in memory: its own (anonymous), and those of mapped files, which the system may drop.

    None is this process. Where the system does not tell them apart, all count as its own; none of one that ended.
    """
    folder = "self" if process_id is None else str(process_id)
    fields = dict(line.split(":", 1) for line in (_read(root / "proc" / folder / "status") or "").splitlines())
    if "RssAnon" in fields:
        own, mapped = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return own, mapped
    import psutil

    try:
        return psutil.Process(process_id).memory_info().rss, 0
    except psutil.Error:
        return 0, 0


def _reclaimable(folder: Path) -> int:
    """File pages a control group is charged for but gives back on demand, such as those of a model file just read."""
    fields = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    counts = {field[0]: int(field[1]) for field in fields if len(field) == 2}
    return counts.get("total_inactive_file", counts.get("inactive_file", 0))


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's folder in a hierarchy and its ancestors'; controller "" is version 2's."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controller
        folder = top / path.lstrip("/")
        # In a container the path may be the host's; what is mounted is then the container's own folder.
        yield from (folder, *folder.parents[: len(folder.parts) - len(top.parts)]) if folder != top else (top,)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
