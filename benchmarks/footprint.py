"""What tuili costs before it answers: download and installed size, import time, time to the first token, memory.

    python benchmarks/footprint.py [--models NAME_OR_PATH ...] [--no-sizes] [--save NAME]

Sizes come from a fresh virtual environment with the core alone, built from this checkout; times are medians of fresh
processes, with the page cache warm and the models stored. Memory is the most the process has held of its own (RssAnon)
and, apart, of mapped files (RssFile), both sampled until its first byte; "limit_mb" is 1.05 times the packed weights,
which is what they take at least, plus 250 MB, and leaves the KV cache out.
"""

from __future__ import annotations

import argparse
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).parent.parent
QUESTION = "Why is the sky blue?"


def folder_mb(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink()) / 1e6


def sizes() -> dict[str, float]:
    """Megabytes of all wheels of the core, and of what they unpack to (without pip itself)."""
    with tempfile.TemporaryDirectory() as name:
        wheels, environment = Path(name, "wheels"), Path(name, "venv")
        subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "-w", str(wheels), str(ROOT)], check=True)
        venv.create(environment, with_pip=True)
        site = next(environment.glob("lib/python*/site-packages"))
        before = folder_mb(site)
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "-q", "--no-index", "--no-compile"]
        subprocess.run([*pip, "-f", str(wheels), "tuili"], check=True)
        return {"download_mb": round(folder_mb(wheels), 1), "installed_mb": round(folder_mb(site) - before, 1)}


def import_s() -> float:
    code = "import time; t = time.perf_counter(); import tuili; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    return statistics.median(float(r.stdout) for r in runs)


def start(model: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tuili.cli.main", "run", model, QUESTION, "--max-tokens", "4"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def first_token_s(model: str, num_runs: int) -> float:
    """From starting `tuili run` to the first byte of the answer."""
    times = []
    for _ in range(num_runs):
        begin = time.perf_counter()
        process = start(model)
        assert process.stdout is not None
        process.stdout.read(1)
        times.append(time.perf_counter() - begin)
        process.communicate()
    return statistics.median(times)


def peak_memory_mb(model: str) -> dict[str, float]:
    """The most of RssAnon and of RssFile, sampled every 2 ms until the first byte of the answer."""
    process = start(model)
    assert process.stdout is not None
    peak = {"RssAnon": 0, "RssFile": 0}
    while not select.select([process.stdout], [], [], 0.002)[0]:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peak:
                peak[name] = max(peak[name], int(value.split()[0]))
    process.communicate()
    return {"peak_anon_mb": round(peak["RssAnon"] / 1e3, 1), "peak_mapped_mb": round(peak["RssFile"] / 1e3, 1)}


def packed_mb(model: str) -> float:
    """What the CPU backend's packed weights take."""
    code = (
        "import sys; from tuili.runtime.loading.loading import LoadOptions, open_model\n"
        "with open_model(sys.argv[1], LoadOptions(max_num_seqs=1, max_model_len=64)) as model:\n"
        "    print(model.backend.weight_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


def model_row(model: str, num_runs: int) -> dict[str, Any]:
    packed = packed_mb(model)
    return {
        "model": Path(model).name,
        "first_token_s": round(first_token_s(model, num_runs), 3),
        **peak_memory_mb(model),
        "packed_mb": round(packed, 1),
        "limit_mb": round(1.05 * packed + 250, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["smollm2:135m"], help="names or paths (smollm2:135m)")
    parser.add_argument("--runs", type=int, default=7, help="processes started for a first token (7)")
    parser.add_argument("--no-sizes", action="store_true", help="leave out the download and installed size")
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    rows = [{"import_s": round(import_s(), 4), **({} if arguments.no_sizes else sizes())}]
    rows += [model_row(model, arguments.runs) for model in arguments.models]
    for row in rows:
        print(json.dumps(row))
    if arguments.save:
        print(machine.save(arguments.save, {"question": QUESTION}, rows))


if __name__ == "__main__":
    main()
