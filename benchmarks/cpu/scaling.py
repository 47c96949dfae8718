"""How cost grows: decode by batch size, by context, by threads; ours and llama.cpp's, in turns.

    python -m benchmarks.cpu.scaling --folder FOLDER [--models smollm2] [--rounds 3] [--series batch,context,threads]

Results go to benchmarks/results/cpu_scaling_MODEL.json after every point.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.cpu.limits import model_cost
from benchmarks.cpu.models import MODELS, BenchModel, ModelMaker, open_bench_model
from benchmarks.cpu.session import OURS, run_rounds, summary

from tuili.runtime.bench.peers.llama_cpp import LlamaCpp
from tuili.runtime.bench.pipeline_meter import PipelineMeter
from tuili.runtime.bench.workload import Workload
from tuili.runtime.loading import LoadOptions, open_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One workload of a series at `x`, with so many threads for everyone."""

    series: str
    x: int
    num_threads: int
    workload: Workload


SERIES: Mapping[str, Sequence[Point]] = {
    "batch": [
        Point(series="batch", x=n, num_threads=2, workload=Workload(num_seqs=n)) for n in (1, 2, 4, 8, 16, 32, 64)
    ],
    "context": [
        Point(series="context", x=n, num_threads=2, workload=Workload(prompt_len=n))
        for n in (128, 512, 1024, 2048, 4096, 8064)  # 8064 + 65 tokens fit into 8192
    ],
    "threads": [
        Point(series=f"threads {name}", x=n, num_threads=n, workload=workload)
        for name, workload in {
            "decode B=1": Workload(),
            "decode B=16": Workload(num_seqs=16),
            "prefill 512": Workload(prompt_len=512, output_len=0),
        }.items()
        for n in (1, 2)
    ],
}


def measure_point(model: BenchModel, point: Point, folder: Path, num_rounds: int) -> dict[str, object]:
    """Both engines at one point; ours is loaded for it."""
    workload = point.workload
    max_len = workload.prompt_len + workload.max_tokens + 16
    options = LoadOptions(
        num_threads=point.num_threads,
        max_model_len=max_len,
        max_num_seqs=workload.num_seqs,
        enable_prefix_caching=False,
    )
    with open_model(str(model.gguf), options) as pipeline:
        ours = PipelineMeter(pipeline, random.Random(point.x), OURS)
        ours.measure(Workload(output_len=8))
        label, path = next(iter(model.llama_cpp.items()))
        with closing(LlamaCpp(path, point.num_threads, folder / "llama_cpp", f"llama.cpp {label}")) as peer:
            rounds = run_rounds(point.series, workload, [ours, peer], num_rounds, point.num_threads, lambda _: None)
    row = summary(point.series, rounds)
    limit = model_cost(model.gguf).share(workload, row)
    return {**asdict(row), "x": point.x, "num_threads": point.num_threads, "share": limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what setup_peers filled")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["smollm2"])
    parser.add_argument("--series", nargs="*", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.models:
        model = open_bench_model(ModelMaker.in_folder(arguments.folder), name)
        path = machine.RESULTS / f"cpu_scaling_{name}.json"
        stored = json.loads(path.read_text())["rows"] if path.exists() else []
        for point in (point for series in arguments.series for point in SERIES[series]):
            row = measure_point(model, point, arguments.folder, arguments.rounds)
            stored = [r for r in stored if (r["measure"], r["x"]) != (point.series, point.x)] + [row]
            print(f"{point.series} {point.x}: {row['tokens_per_s']} {row['ratios']}", flush=True)
            settings = {"rounds": arguments.rounds, "model": model.label, "date": time.strftime("%Y-%m-%d")}
            machine.save(path.stem, settings, sorted(stored, key=lambda r: (r["measure"], r["x"])))


if __name__ == "__main__":
    main()
