"""A bench run as plain values: what was measured, on what, with which settings. Prints nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuili.backend import Backend
from tuili.machine import thread_limits
from tuili.runtime.bench.workload import Contender, Measurement, Workload, median_ratio, percentile
from tuili.runtime.loading.pipeline import Pipeline

_WARM_UP = Workload(num_seqs=1, prompt_len=32, output_len=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One contender at one workload: medians over rounds; what it does not tell is None."""

    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    time_to_first_token_s: float | None  # median over sequences
    token_gap_p50_s: float | None  # between neighbouring tokens of a sequence
    token_gap_p99_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRow:
    """One workload; ratios are ours over the peer's, median over rounds."""

    num_seqs: int
    prompt_len: int
    output_len: int
    ours: Figures
    peer: Figures | None = None
    decode_ratio: float | None = None
    prefill_ratio: float | None = None
    peer_settings: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReport:
    """Bytes after the last workload. Mapped pages belong to files and can be given back at any time."""

    anonymous_bytes: int | None
    mapped_bytes: int | None
    weight_bytes: int | None
    kv_cache_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """Everything `tuili bench` tells. A server shows its rates only: the rest is None or empty then."""

    model: str
    rows: Sequence[BenchRow]
    versions: dict[str, str]
    load_s: float | None = None
    memory: MemoryReport | None = None
    num_prefix_queries: int | None = None
    num_prefix_hits: int | None = None
    engine: dict[str, Any] = field(default_factory=dict)  # backend, isa, threads and why
    peer: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_workloads(
    ours: Contender,
    peer: Contender | None,
    workloads: Sequence[Workload],
    num_rounds: int,
    report: Callable[[str], None],
) -> list[BenchRow]:
    """Each workload in `num_rounds` rounds in which everybody runs once, in turn, after a warm-up."""
    ours.measure(_WARM_UP)
    rows = []
    for workload in workloads:
        runs, peer_runs = [], []
        for index in range(num_rounds):
            report(f"{workload.num_seqs} x {workload.prompt_len}+{workload.output_len}, round {index + 1}/{num_rounds}")
            runs.append(ours.measure(workload))
            if peer is not None:
                peer_runs.append(peer.measure(workload))
        rows.append(_row(workload, runs, peer_runs, peer))
    return rows


def _row(
    workload: Workload, ours: Sequence[Measurement], theirs: Sequence[Measurement], peer: Contender | None
) -> BenchRow:
    settings = getattr(peer, "settings", None)
    return BenchRow(
        num_seqs=workload.num_seqs,
        prompt_len=workload.prompt_len,
        output_len=workload.output_len,
        ours=figures(ours),
        peer=figures(theirs) if theirs else None,
        decode_ratio=_ratio([m.decode_tokens_per_s for m in ours], [m.decode_tokens_per_s for m in theirs]),
        prefill_ratio=_ratio([m.prefill_tokens_per_s for m in ours], [m.prefill_tokens_per_s for m in theirs]),
        peer_settings=None if settings is None else settings(workload),
    )


def figures(measurements: Sequence[Measurement]) -> Figures:
    """Medians of rates; times over every sequence of every round."""
    traces = [m.trace for m in measurements if m.trace is not None]
    first = [time for trace in traces for time in trace.first_token_times_s()]
    gaps = [gap for trace in traces for gap in trace.gaps_s()]
    return Figures(
        prefill_tokens_per_s=_median([m.prefill_tokens_per_s for m in measurements]),
        decode_tokens_per_s=_median([m.decode_tokens_per_s for m in measurements]),
        time_to_first_token_s=statistics.median(first) if first else None,
        token_gap_p50_s=percentile(gaps, 50) if gaps else None,
        token_gap_p99_s=percentile(gaps, 99) if gaps else None,
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    return median_ratio([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def memory_report(pipeline: Pipeline, block_size: int) -> MemoryReport:
    """This process's memory as the system counts it now."""
    groups = pipeline.own_backend.cache_groups(block_size)
    num_blocks = pipeline.loop.stats().num_blocks
    status = _process_status(Path("/proc/self/status"))
    weight_bytes = getattr(pipeline.own_backend, "weight_bytes", None)
    return MemoryReport(
        anonymous_bytes=status.get("RssAnon"),
        mapped_bytes=status.get("RssFile"),
        weight_bytes=weight_bytes,
        kv_cache_bytes=sum(n * group.block_bytes for n, group in zip(num_blocks, groups, strict=True)),
    )


def _process_status(path: Path) -> dict[str, int]:
    """Fields of a Linux process status that count kibibytes, in bytes; empty on other systems."""
    if not path.exists():
        return {}
    fields = (line.split() for line in path.read_text().splitlines())
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in fields if len(f) == 3 and f[2] == "kB"}


def engine_report(backend: Backend, requested_threads: int) -> dict[str, Any]:
    """What ran: instruction set, threads and what limits them."""
    limits = thread_limits(requested_threads)
    return {
        "isa": getattr(backend, "isa", None),
        "num_threads": getattr(backend, "num_threads", limits.num_threads),
        "threads_by": limits.reason,
        "affinity": limits.affinity,
        "physical_cores": limits.cores,
        "quota": limits.quota,
    }
