"""Installs the peers, each in a place of its own, and makes the models: python -m benchmarks.cpu.setup_peers FOLDER.

What is there already is left alone. Needs cmake, a C++ compiler, and for vLLM the system package libtcmalloc-minimal4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cpu import peers
from benchmarks.cpu.models import MODELS, ModelMaker, make_directory, open_bench_model

from tuili.registry import discover


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", nargs="*", default=list(discover(peers)))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    modules = discover(peers)
    for name in arguments.peers:
        print(f"installing {name}", flush=True)
        modules[name].install(folder)
    for name in arguments.models:
        print(f"making {name}", flush=True)
        model = open_bench_model(ModelMaker.in_folder(folder), name)
        if "vllm" in arguments.peers:
            make_directory(model, folder / "vllm" / "bin" / "python")


if __name__ == "__main__":
    main()
