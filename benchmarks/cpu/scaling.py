"""How cost grows: decode by batch size, by context, by threads; ours and llama.cpp's, in turns.

    python -m benchmarks.cpu.scaling --folder FOLDER [--models smollm2] [--rounds 3] [--series batch context threads]
        [--at 1 2 4] [--files Q4_0] [--repack 1]

Results go to benchmarks/results/cpu_scaling_MODEL.json after every point; points stored before stay.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cpu.limits import model_cost
from benchmarks.cpu.models import MODELS, BenchModel, ModelMaker, open_bench_model
from benchmarks.cpu.session import OURS, run_rounds, summary

from tuili.runtime.bench.peers.llama_cpp import LlamaCpp
from tuili.runtime.bench.pipeline_meter import PipelineMeter
from tuili.runtime.bench.workload import Workload
from tuili.runtime.loading.loading import LoadOptions, open_model


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


def measure_point(model: BenchModel, point: Point, arguments: argparse.Namespace) -> dict[str, object]:
    """Everybody at one point; ours is loaded for it."""
    workload = point.workload
    max_len = workload.prompt_len + workload.max_tokens + 16
    options = LoadOptions(
        speculative=None,
        num_threads=point.num_threads,
        max_model_len=max_len,
        max_num_seqs=workload.num_seqs,
        enable_prefix_caching=False,
    )
    with ExitStack() as stack:
        pipeline = stack.enter_context(open_model(str(model.gguf), options))
        ours = PipelineMeter(pipeline, random.Random(point.x), OURS)
        ours.measure(Workload(output_len=8))
        contenders: list[Any] = [ours]
        for label, path in model.llama_cpp.items():
            if label in (arguments.files or model.llama_cpp):
                peer = LlamaCpp(path, point.num_threads, arguments.folder / "llama_cpp", f"llama.cpp {label}")
                if arguments.repack is not None:
                    peer.prefer(workload, f"--repack {arguments.repack}")
                contenders.append(stack.enter_context(closing(peer)))
        rounds = run_rounds(point.series, workload, contenders, arguments.rounds, point.num_threads, lambda _: None)
    row = summary(point.series, rounds)
    limit = model_cost(model.gguf).share(workload, row)
    return {**asdict(row), "x": point.x, "num_threads": point.num_threads, "share": limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what setup_peers filled")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["smollm2"])
    parser.add_argument("--series", nargs="*", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--at", nargs="*", type=int, help="only these points of the series")
    parser.add_argument("--files", nargs="*", help="only these quantizations for llama.cpp")
    parser.add_argument("--repack", type=int, choices=(0, 1), help="llama.cpp's setting, where not the better one")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.models:
        model = open_bench_model(ModelMaker.in_folder(arguments.folder), name)
        path = machine.RESULTS / f"cpu_scaling_{name}.json"
        stored = json.loads(path.read_text())["rows"] if path.exists() else []
        points = [point for series in arguments.series for point in SERIES[series]]
        for point in (p for p in points if not arguments.at or p.x in arguments.at):
            row = measure_point(model, point, arguments)
            stored = [r for r in stored if (r["measure"], r["x"]) != (point.series, point.x)] + [row]
            print(f"{point.series} {point.x}: {row['tokens_per_s']} {row['ratios']}", flush=True)
            settings = {"rounds": arguments.rounds, "model": model.label, "date": time.strftime("%Y-%m-%d")}
            machine.save(path.stem, settings, sorted(stored, key=lambda r: (r["measure"], r["x"])))


if __name__ == "__main__":
    main()
