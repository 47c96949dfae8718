"""OpenVINO GenAI in a virtual environment of its own; reads the GGUF file itself."""

from __future__ import annotations

import subprocess
import venv
from dataclasses import replace
from pathlib import Path

from benchmarks.cpu.models import BenchModel

from tuili.errors import PeerError
from tuili.runtime.bench.peers.openvino import OpenVino
from tuili.runtime.bench.target import PeerTarget


def install(folder: Path) -> None:
    """FOLDER/openvino becomes the environment."""
    python = folder / "openvino" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "openvino", with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "openvino-genai", "numpy"], check=True)


def open_peers(model: BenchModel, folder: Path, target: PeerTarget) -> list[OpenVino]:
    """Raises PeerError where OpenVINO cannot read the model."""
    if model.openvino is None:
        raise PeerError(model.notes["openvino"])
    return [OpenVino(replace(target, peer_model=str(model.openvino), peer_path=folder / "openvino"))]
