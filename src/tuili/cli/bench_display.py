"""How a bench report looks: a table for people, CSV for spreadsheets. Measures nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from tuili.cli.terminal import format_bytes, format_table

if TYPE_CHECKING:
    from tuili.runtime.bench.report import BenchReport, BenchRow, Figures

_HEADER = ("sequences", "prompt", "output", "prefill tok/s", "first token", "decode tok/s", "gap p50", "gap p99")


def render_report(report: BenchReport) -> str:
    """Facts, then one line per workload, the peer's beside ours."""
    lines = [f"{label:<12}  {fact}\n" for label, fact in _facts(report)]
    name = report.peer.get("name")
    header = _HEADER if name is None else (*_HEADER, f"{name} prefill", f"{name} decode", "prefill", "decode")
    return "".join(lines) + "\n" + format_table(header, [_cells(row) for row in report.rows])


def render_csv(report: BenchReport) -> str:
    """One record per workload."""
    records = [_record(row) for row in report.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _facts(report: BenchReport) -> Iterator[tuple[str, str]]:
    yield "model", report.model
    if report.load_s is not None:
        yield "load", f"{report.load_s:.2f} s"
    if (memory := report.memory) is not None:
        parts = (
            ("anonymous", memory.anonymous_bytes),
            ("mapped", memory.mapped_bytes),
            ("weights", memory.weight_bytes),
            ("KV cache", memory.kv_cache_bytes),
        )
        yield "memory", ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size is not None)
    if report.num_prefix_queries is not None and report.num_prefix_hits is not None:
        hits, queries = report.num_prefix_hits, report.num_prefix_queries
        yield "prefix cache", f"{hits} of {queries} prompt tokens found ({hits / queries if queries else 0:.0%})"
    if engine := report.engine:
        quota = "none" if engine["quota"] is None else f"{engine['quota']:g}"
        yield "kernels", engine["isa"] or "reference"
        yield "threads", f"{engine['num_threads']}, by {engine['threads_by']} (control group quota {quota})"
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    if report.peer:
        yield "against", " ".join(report.peer.values())


def _cells(row: BenchRow) -> Sequence[str]:
    ours = (
        *map(str, (row.num_seqs, row.prompt_len, row.output_len)),
        _rate(row.ours.prefill_tokens_per_s),
        _time(row.ours.time_to_first_token_s),
        _rate(row.ours.decode_tokens_per_s),
        _time(row.ours.token_gap_p50_s),
        _time(row.ours.token_gap_p99_s),
    )
    if row.peer is None:
        return ours
    rates = _rate(row.peer.prefill_tokens_per_s), _rate(row.peer.decode_tokens_per_s)
    return (*ours, *rates, _times(row.prefill_ratio), _times(row.decode_ratio))


def _record(row: BenchRow) -> dict[str, object]:
    plain = {"num_seqs": row.num_seqs, "prompt_len": row.prompt_len, "output_len": row.output_len}
    record: dict[str, object] = {**plain, **asdict(row.ours)}
    if row.peer is not None:
        record |= _prefixed(row.peer)
        record |= {"prefill_ratio": row.prefill_ratio, "decode_ratio": row.decode_ratio, "settings": row.peer_settings}
    return record


def _prefixed(figures: Figures) -> dict[str, object]:
    return {f"peer_{name}": value for name, value in asdict(figures).items()}


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
