"""llama.cpp: its tools are built from the source distribution of llama-cpp-python on PyPI, for this machine."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.cpu.models import BenchModel

from tuili.runtime.bench.peers.llama_cpp import LlamaCpp
from tuili.runtime.bench.target import PeerTarget

PACKAGE = "llama-cpp-python==0.3.36"
TARGETS = ("llama-bench", "llama-batched-bench", "llama-perplexity", "llama-quantize")
FLAGS = ("-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_BUILD_TESTS=OFF")


def install(folder: Path) -> None:
    """FOLDER/llama_cpp/bin gets the tools, FOLDER/llama_cpp_source their source. Needs cmake and a C++ compiler."""
    source, target = folder / "llama_cpp_source", folder / "llama_cpp"
    if not source.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--no-build-isolation", "-d", str(folder), PACKAGE], check=True)
        (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp").rename(source)
    if all((target / "bin" / tool).exists() for tool in TARGETS):
        return
    configure = ["cmake", "-S", str(source), "-B", str(target), *FLAGS, "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(target), "-j", "--target", *TARGETS], check=True)


def open_peers(model: BenchModel, folder: Path, target: PeerTarget) -> list[LlamaCpp]:
    """One contender for each quantization that llama.cpp is to be measured with."""
    return [
        LlamaCpp(path, target.num_threads, folder / "llama_cpp", name=f"llama.cpp {label}")
        for label, path in model.llama_cpp.items()
    ]
