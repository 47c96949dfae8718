"""How many threads and how much memory, read from made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuili import machine
from tuili.backends.cpu import platform


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
                "sys/fs/cgroup/cpu.max": "max 100000",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/7",
                "sys/fs/cgroup/cpu/docker/7/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu/docker/7/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (  # the path is the host's, but the container sees its own folder as the top
            {
                "proc/self/cgroup": "4:cpu:/docker/7",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/../outside", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert machine.cpu_quota(tree(tmp_path, files)) == quota


def topology(cores: list[tuple[int, int]]) -> dict[str, str]:
    files = {}
    for cpu, (package, core) in enumerate(cores):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{folder}/physical_package_id": str(package), f"{folder}/core_id": str(core)}
    return files


def test_hyperthreads_share_a_core(tmp_path: Path) -> None:
    root = tree(tmp_path, topology([(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)]))
    assert machine.physical_cores(frozenset(range(5)), root) == 3
    assert machine.physical_cores(frozenset({0, 2}), root) == 1
    assert machine.physical_cores(frozenset(range(6)), root) == 6  # cpu5 says nothing: all count


def test_the_least_limit_is_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    root = tree(tmp_path, topology([(0, i) for i in range(6)]))
    limits = machine.thread_limits(0, root)
    assert (limits.num_threads, limits.reason, limits.affinity, limits.cores) == (6, "affinity", 6, 6)
    tree(root, topology([(0, i // 2) for i in range(6)]))
    assert machine.thread_limits(0, root).reason == "physical cores"
    tree(root, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "290000 100000"})
    limits = machine.thread_limits(0, root)
    assert (limits.num_threads, limits.reason, limits.quota) == (2, "control group quota", 2.9)
    tree(root, {"sys/fs/cgroup/cpu.max": "50000 100000"})
    assert machine.thread_limits(0, root).num_threads == 1
    assert machine.thread_limits(5, root).num_threads == 5
    assert machine.thread_limits(5, root).reason == "requested"


def test_available_memory(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/job",
        "sys/fs/cgroup/job/memory.max": "5000",
        "sys/fs/cgroup/job/memory.current": "3000",
    }
    root = tree(tmp_path, files)
    assert machine.available_memory(root) == 2000
    tree(root, {"sys/fs/cgroup/job/memory.stat": "anon 900\ninactive_file 500"})
    assert machine.available_memory(root) == 2500  # file pages are given back on demand
    tree(root, {"sys/fs/cgroup/job/memory.current": "6000"})
    assert machine.available_memory(root) == 0
    tree(root, {"sys/fs/cgroup/job/memory.max": "max"})
    assert machine.available_memory(root) > 2**20
    limit, usage = "sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"
    tree(root, {"proc/self/cgroup": "3:memory:/", limit: "700", usage: "100"})
    assert machine.available_memory(root) == 600


def test_the_least_memory_limit_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": "MemAvailable:    7 kB", "proc/self/cgroup": "0::/a/b"})
    assert machine.memory_limits(root) == machine.MemoryLimits(
        free_bytes=7168, reason="the system", group_limit_bytes=None
    )
    group = "sys/fs/cgroup/a"
    tree(root, {f"{group}/memory.max": "5000", f"{group}/memory.current": "3000", f"{group}/b/memory.max": "max"})
    tree(root, {f"{group}/b/memory.current": "10"})
    assert machine.memory_limits(root) == machine.MemoryLimits(
        free_bytes=2000, reason="control group", group_limit_bytes=5000
    )
    limit, usage = "sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"
    tree(root, {"proc/self/cgroup": "3:memory:/", limit: "9223372036854771712", usage: "100"})  # version 1's "none"
    assert machine.memory_limits(root).group_limit_bytes is None


def test_available_memory_is_what_the_system_says(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    7 kB\nBuffers: 1 kB"})
    assert machine.available_memory(root) == 7 * 1024


def test_process_memory_tells_own_pages_from_mapped_ones(tmp_path: Path) -> None:
    status = "Name:\tpython: x\nVmRSS:\t 60 kB\nRssAnon:\t 40 kB\nRssFile:\t 20 kB"
    assert machine.process_memory(tree(tmp_path, {"proc/self/status": status})) == (40 * 1024, 20 * 1024)
    own, mapped = machine.process_memory(tmp_path / "without")
    assert own > 2**20
    assert mapped == 0


def test_report_is_plain_data() -> None:
    report = platform.report()
    assert report["isa"] in ("avx512_bf16", "avx512", "avx_vnni", "avx2", "scalar")
    assert report["threads"]["num_threads"] >= 1
    assert report["cpu"]
    assert set(report["features"]) <= {"avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avx512bf16", "avx_vnni"}
