"""The results of all stages as one page and, where matplotlib is installed, one plot. Measures nothing.

python -m benchmarks.gpu.report FOLDER: makes both anew, of results that another machine measured.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gpu.records import Record, read_records

# name -> (what is compared, at least or at most, how much), for one H200
TARGETS: Mapping[str, tuple[str, str, float]] = {
    "Qwen3-1.7B decode B=1": ("share_of_limit", ">=", 0.60),
    "Qwen3-1.7B decode B=64 at 1024": ("share_of_limit", ">=", 0.65),
    "Qwen3-1.7B prefill 8 x 2048": ("share_of_limit", ">=", 0.50),
    "Qwen3-1.7B first token of 512": ("value", "<=", 15),
    "Qwen3-1.7B start to first token": ("value", "<=", 8),
    "Qwen3-1.7B against transformers B=1": ("value", ">=", 8),
    "Qwen3-1.7B against transformers B=64 at 1024": ("value", ">=", 8),
    "Q4_0 24576x4096 tokens 1": ("share_of_limit", ">=", 0.70),
    "Q4_K 24576x4096 tokens 1": ("share_of_limit", ">=", 0.70),
}


def write_report(folder: Path, stages: Sequence[str]) -> None:
    """summary.md, and roofline.png beside it, of what there is so far."""
    found = {stage: read_records(folder / f"{stage}.jsonl") for stage in stages}
    everything = [record for records in found.values() for record in records]
    parts = [f"## Targets\n\n{_targets(everything)}"]
    parts += [f"## {stage}\n\n{_page(records)}" for stage, records in found.items() if records]
    (folder / "summary.md").write_text("# Checks and measurements on a GPU\n\n" + "\n".join(parts), encoding="utf-8")
    limits = {r["name"]: r["value"] for r in everything if "unit" in r and "name" in r}
    if points := [r for r in everything if "operations" in r]:
        _plot(folder / "roofline.png", points, limits)


def _targets(records: Sequence[Record]) -> str:
    """Each with what was measured last, or that it was not."""
    found = {str(r.get("name", r.get("kernel"))): r for r in records}
    lines = ["| target | at | measured | |", "|---|---|---|---|"]
    for name, (key, relation, bound) in TARGETS.items():
        value = found.get(name, {}).get(key)
        measured, verdict = ("", "not measured") if value is None else (_told(key, value), _verdict(name, value))
        lines.append(f"| {name} | {relation} {_told(key, bound)} | {measured} | {verdict} |")
    return "\n".join(lines) + "\n"


def _told(key: str, value: float) -> str:
    return f"{value:.1%} of the limit" if key == "share_of_limit" else f"{value:.4g}"


def _verdict(name: str, value: float) -> str:
    _, relation, bound = TARGETS[name]
    return "reached" if (value >= bound if relation == ">=" else value <= bound) else "missed"


def _page(records: Sequence[Record]) -> str:
    checks = [r for r in records if "check" in r]
    lines = []
    if checks:
        wrong = [r for r in checks if r.get("ok") is False]
        lines.append(f"{len(checks)} checks, {len(wrong)} wrong.\n")
        lines += [f"- wrong: {_items(r)}" for r in wrong] + [f"- {_items(r)}" for r in checks if "same" in r]
    lines += [f"- failed: {r.get('name', r.get('stage'))}: {r['failed']}" for r in records if "failed" in r]
    lines += [f"- skipped: {r['name']}: {r['skipped']}" for r in records if "skipped" in r]
    lines += [f"- {_items(r)}" for r in records if r.get("name") == "machine" or "exit_codes" in r]
    rows = [_row(r) for r in records if "value" in r] + [_kernel_row(r) for r in records if "kernel" in r]
    if rows:
        lines += ["", "| measured | value | share of the limit |", "|---|---|---|", *rows]
    lines += [line for r in records if "profile" in r for line in _profile(r)]
    return "\n".join(lines) + "\n"


def _profile(record: Record) -> list[str]:
    """The kernels that took most."""
    head = f"\n{record['profile']}: {record['seconds']:.4g} s, of which kernels ran {record['busy_s']:.4g} s\n"
    return [head, *(f"- {k['us']:.0f} µs in {k['count']} of {k['name']}" for k in record["kernels"])]


def _items(record: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items())


def _row(record: Record) -> str:
    share = f"{record['share_of_limit']:.1%} of {record['limit']}" if "share_of_limit" in record else ""
    return f"| {record['name']} | {record['value']:.4g} {record['unit']} | {share} |"


def _kernel_row(record: Record) -> str:
    rate = f"{record['us']:.1f} µs, {record['rate']:.4g} {record['unit']}"
    return f"| {record['kernel']} | {rate} | {record['share_of_limit']:.1%} |"


def _plot(path: Path, points: Sequence[Record], limits: Mapping[str, float]) -> None:
    copied, multiplied = limits.get("copy, read and written"), limits.get("bfloat16 product")
    if not copied or not multiplied:
        return
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    intensities = [10 ** (i / 20 - 1) for i in range(100)]
    axes.loglog(intensities, [min(copied * x / 1e3, multiplied) for x in intensities], color="black")
    for point in points:
        x, y = point["operations"] / point["bytes"], point["operations"] / point["seconds"] / 1e12
        axes.plot(x, y, "o", label=point["name"])
    axes.set(xlabel="operations per byte", ylabel="TFLOP/s", title="Measured against copy and product of this machine")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    folder = Path(sys.argv[1])
    write_report(folder, sorted(path.stem for path in folder.glob("*.jsonl")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
