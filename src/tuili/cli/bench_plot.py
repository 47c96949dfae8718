"""A bench report as a picture: throughput and latency over the number of sequences. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuili.errors import InvalidRequestError

if TYPE_CHECKING:
    from tuili.runtime.bench.report import BenchReport, Figures


def check_plot(path: Path) -> None:
    """Raises InvalidRequestError, before anything is measured, where no picture could be written."""
    from importlib.util import find_spec

    if path.suffix.lower() != ".png":
        raise InvalidRequestError(f"plot must be the name of a .png file, got {path.name!a:.80}", param="plot")
    if not path.parent.is_dir():
        raise InvalidRequestError(f"plot: there is no folder {str(path.parent)!a:.200}", param="plot")
    if find_spec("matplotlib") is None:
        raise InvalidRequestError("plot needs matplotlib: pip install 'tuili[bench]'", param="plot")


def write_plot(report: BenchReport, path: Path) -> None:
    """Draws decode throughput and token gaps; the peer's beside ours. Raises InvalidRequestError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    throughput, latency = figure.subplots(1, 2)
    rows = [row for row in report.rows if row.output_len > 0]
    sizes = [row.num_seqs for row in rows]
    contenders: dict[str, list[Figures]] = {"tuili" if report.engine else "server": [row.ours for row in rows]}
    if report.peer:
        contenders[report.peer["name"]] = [row.peer for row in rows if row.peer is not None]
    for name, figures in contenders.items():
        _line(throughput, sizes, [f.decode_tokens_per_s for f in figures], name)
        _line(latency, sizes, [_ms(f.token_gap_p50_s) for f in figures], f"{name}, median")
        _line(latency, sizes, [_ms(f.token_gap_p99_s) for f in figures], f"{name}, 99th percentile")
    for axes, what in (
        (throughput, "decoded tokens per second, together"),
        (latency, "ms between tokens of a sequence"),
    ):
        axes.set(xlabel="sequences at once", ylabel=what, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    engine = report.engine
    ran_on = f", {engine['num_threads']} threads, {engine['isa'] or 'reference'}" if engine else ""
    figure.suptitle(report.model + ran_on)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {str(path)!a:.200}: {error.strerror}", param="plot") from error


def _line(axes: Any, sizes: list[int], values: list[float | None], label: str) -> None:
    """What a contender does not tell is left out."""
    points = [(size, value) for size, value in zip(sizes, values, strict=True) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", label=label)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
