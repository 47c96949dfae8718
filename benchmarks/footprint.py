"""What tuili costs before it answers: download and installed size, import time, time to the first token.

    python benchmarks/footprint.py [--save NAME]

Sizes come from a fresh virtual environment with the core alone, built from this checkout; times are medians of fresh
processes, with the page cache warm and the default model stored.
"""

from __future__ import annotations

import argparse
import json
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


def first_token_s() -> float:
    """From starting `tuili run` to the first byte of the answer."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        command = ["tuili", "run", QUESTION, "--max-tokens", "4"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.read(1)
        times.append(time.perf_counter() - start)
        process.communicate()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", help="name of the results file")
    arguments = parser.parse_args()
    row: dict[str, Any] = {"import_s": round(import_s(), 4), "first_token_s": round(first_token_s(), 3), **sizes()}
    print(json.dumps(row))
    if arguments.save:
        print(machine.save(arguments.save, {"question": QUESTION}, [row]))


if __name__ == "__main__":
    main()
