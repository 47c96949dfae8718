"""Runs every stage as processes of its own with a time limit of its own, whatever becomes of the others.

Stages append to FOLDER/STAGE.jsonl as they go; log.txt has their output; summary.md and roofline.png are made anew
after every stage, so that a run that is cut short leaves what it found.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.records import Recorder, read_records
from benchmarks.gpu.report import write_report

_NUM_SHARES = 12  # mostly compiling, each on a core
_NAMES = ("environment", "engine", "kernels", "correctness", "large")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REPORT_S = 15  # kept back for the last report


@dataclass(frozen=True, slots=True)
class Stage:
    """Commands that run side by side, and the seconds they have; and with what they are run again if nothing came of
    them that is compared with the machine's limits.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_s: float
    again: tuple[str, ...] = ()


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments)


def all_stages(num_shares: int) -> tuple[Stage, ...]:
    """Those that targets speak of first: only the last may find its time cut short. So many processes check kernels
    side by side.
    """
    shares = (f"{i}/{num_shares}" for i in range(num_shares))
    checks = (_module("kernels", "--part", "checks", "--share", share) for share in shares)
    return (
        Stage("environment", (_module("environment"),), 50),
        Stage("engine", (_module("engine"),), 190, ("--eager",)),
        Stage("kernels", (_module("kernels", "--part", "times"),), 80),
        Stage("correctness", (_module("correctness"), *checks), 140),
        Stage("large", (_module("large"),), 120),
    )


def run_stage(stage: Stage, folder: Path, arguments: Sequence[str], limit_s: float) -> bool:
    """Whether every command ended well in time; those that did not end are killed with all their children."""
    recorder, started = Recorder(folder / f"{stage.name}.jsonl"), time.monotonic()
    num_threads = str(max(1, (os.cpu_count() or 1) // len(stage.commands)))  # or each would have one on every core
    environment = {**dict.fromkeys(_THREADS, num_threads), **os.environ}
    with (folder / "log.txt").open("ab") as log:
        processes = [
            subprocess.Popen(
                [*command, "--records", str(recorder.path), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
            for command in stage.commands
        ]
        for process in processes:
            try:
                process.wait(max(0.0, started + limit_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    recorder.mend()
    codes = [process.returncode for process in processes]
    seconds = time.monotonic() - started
    recorder.add({"stage": stage.name, "seconds": round(seconds, 1), "limit_s": limit_s, "exit_codes": codes})
    return not any(codes)


def run_stages(stages: Sequence[Stage], folder: Path, arguments: Sequence[str], total_s: float) -> int:
    """0 where all went well. A stage for which no time is left is recorded as such."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*(folder / f"{stage.name}.jsonl" for stage in stages), folder / "log.txt"):
        old.unlink(missing_ok=True)
    end, is_well = time.monotonic() + total_s - _REPORT_S, True
    for stage in stages:
        limit_s = min(stage.limit_s, end - time.monotonic())
        is_well &= limit_s > 0 and run_stage(stage, folder, arguments, limit_s)
        left_s = min(stage.limit_s, end - time.monotonic())
        if stage.again and limit_s > 0 and left_s > 0 and not _has_measured(folder, stage):
            is_well = run_stage(stage, folder, [*arguments, *stage.again], left_s) and is_well
        if limit_s <= 0:
            Recorder(folder / f"{stage.name}.jsonl").add({"stage": stage.name, "failed": "no time was left"})
        write_report(folder, [stage.name for stage in stages])
    return 0 if is_well else 1


def _has_measured(folder: Path, stage: Stage) -> bool:
    return any("share_of_limit" in record for record in read_records(folder / f"{stage.name}.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, kernels in Triton's interpreter")
    parser.add_argument("--only", nargs="+", choices=_NAMES, help="these stages alone")
    parser.add_argument("--limit", type=float, default=530, help="seconds for everything")
    given = parser.parse_args()
    arguments = ["--device", "cpu", "--smoke"] if given.smoke else ["--device", "cuda"]
    if given.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    everything = all_stages(2 if given.smoke else min(_NUM_SHARES, os.cpu_count() or 1))
    stages = [stage for stage in everything if given.only is None or stage.name in given.only]
    code = run_stages(stages, given.folder, arguments, given.limit)
    print((given.folder / "summary.md").read_text(encoding="utf-8"))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
