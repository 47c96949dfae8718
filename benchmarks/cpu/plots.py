"""Draws docs/plots/*.png from benchmarks/results: python -m benchmarks.cpu.plots. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from benchmarks import machine
from benchmarks.cpu.models import MODELS
from matplotlib import pyplot

PLOTS = Path(__file__).parents[2] / "docs" / "plots"
SIZE = (6.0, 3.4)  # inches
AXES = {
    "batch": "sequences at once (context 32-96)",
    "context": "tokens of context, one sequence",
}


def draw_series(model: str, series: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Tokens per second of everybody over x, both axes logarithmic."""
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    for name in dict.fromkeys(name for row in rows for name in row["tokens_per_s"]):
        points = [(row["x"], row["tokens_per_s"][name]) for row in rows if name in row["tokens_per_s"]]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks([row["x"] for row in rows], [str(row["x"]) for row in rows])
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel(AXES[series])
    axes.set_ylabel("decoded tokens/s")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    return _saved(figure, f"{model}_{series}")


def draw_threads(model: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Speed with two threads over speed with one."""
    names = sorted({row["measure"] for row in rows})
    engines = list(rows[0]["tokens_per_s"])
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    for index, engine in enumerate(engines):
        rates = {(row["measure"], row["x"]): row["tokens_per_s"][engine] for row in rows}
        gains = [rates[name, 2] / rates[name, 1] for name in names]
        axes.bar([i + 0.4 * index for i in range(len(names))], gains, width=0.38, label=engine)
    axes.set_xticks([i + 0.2 for i in range(len(names))], [name.removeprefix("threads ") for name in names])
    axes.set_ylabel("two threads over one")
    axes.axhline(2, color="gray", linewidth=0.8)
    axes.legend()
    return _saved(figure, f"{model}_threads")


def draw_shares(models: Mapping[str, Sequence[tuple[str, float]]]) -> Path:
    """Share of the machine's limit, by model."""
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    measures = list(dict.fromkeys(measure for shares in models.values() for measure, _ in shares))
    for index, (model, shares) in enumerate(models.items()):
        known = dict(shares)
        axes.bar(
            [i + 0.2 * index for i in range(len(measures))], [known.get(m, 0) for m in measures], 0.18, label=model
        )
    axes.set_xticks([i + 0.1 * (len(models) - 1) for i in range(len(measures))], measures, fontsize=7)
    axes.set_ylabel("share of the probe")
    axes.set_ylim(0, 1.1)
    axes.legend(fontsize=7)
    return _saved(figure, "share_of_limit")


def _saved(figure: Any, name: str) -> Path:
    PLOTS.mkdir(exist_ok=True)
    path = PLOTS / f"{name}.png"
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def main() -> None:
    shares: dict[str, list[tuple[str, float]]] = {}
    for model in MODELS:
        table, scaling = (machine.RESULTS / f"{stem}{model}.json" for stem in ("cpu_", "cpu_scaling_"))
        if table.exists():
            content = json.loads(table.read_text())
            shares[content["facts"]["label"]] = list(content["shares"].items())
        if not scaling.exists():
            continue
        rows = json.loads(scaling.read_text())["rows"]
        for series in AXES:
            if found := [row for row in rows if row["measure"] == series]:
                print(draw_series(model, series, found))
        if threads := [row for row in rows if row["measure"].startswith("threads")]:
            print(draw_threads(model, threads))
    if shares:
        print(draw_shares(shares))


if __name__ == "__main__":
    main()
