"""OpenVINO GenAI in an environment of its own: continuous batching, and for one sequence also the stateful pipeline."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tuili.errors import TuiliError
from tuili.runtime.bench.child import ChildPeer
from tuili.runtime.bench.target import PeerFlags, PeerTarget
from tuili.runtime.bench.workload import Measurement, Workload

NAME = "openvino"
PACKAGE = "openvino-genai"
ATTENTION = ("paged", "stateful")


def check(flags: PeerFlags) -> None:
    """Raises InvalidRequestError where no interpreter is named."""
    flags.python(NAME, PACKAGE)


def open_peer(target: PeerTarget) -> OpenVino:
    """Raises PeerError as OpenVino does."""
    return OpenVino(target)


class OpenVino:
    """A workload of one sequence runs on both pipelines once, from then on on the faster one."""

    name = NAME

    def __init__(self, target: PeerTarget) -> None:
        """Raises PeerError when OpenVINO cannot read the model or is not installed."""
        self._folder = tempfile.TemporaryDirectory()
        self._children: dict[str, ChildPeer] = {}
        self._chosen: dict[Workload, str] = {}
        model = Path(self._folder.name, "model.gguf")  # OpenVINO tells a file's format by its suffix
        model.symlink_to(target.gguf(NAME).resolve())
        try:
            for attention in ATTENTION:
                self._children[attention] = _open_child(model, attention, target)
        except TuiliError:
            self.close()
            raise

    @property
    def version(self) -> str:
        return self._children["paged"].version

    def measure(self, workload: Workload) -> Measurement:
        """Raises PeerError."""
        if workload.num_seqs > 1:
            return self._children["paged"].measure(workload)
        if workload not in self._chosen:
            runs = {name: child.measure(workload) for name, child in self._children.items()}
            self._chosen[workload] = max(runs, key=lambda name: runs[name].speed)
            return runs[self._chosen[workload]]
        return self._children[self._chosen[workload]].measure(workload)

    def settings(self, workload: Workload) -> str:
        """Which pipeline a workload that has been measured runs on."""
        return self._chosen.get(workload, "paged")

    def prefer(self, workload: Workload, settings: str) -> None:
        """Runs `workload` on the pipeline found faster earlier."""
        self._chosen[workload] = settings

    def close(self) -> None:
        for child in self._children.values():
            child.close()
        self._folder.cleanup()


def _open_child(model: Path, attention: str, target: PeerTarget) -> ChildPeer:
    limits = [str(target.num_threads), attention, str(target.max_num_seqs), str(target.max_len)]
    return ChildPeer(
        NAME,
        target.python(NAME, PACKAGE),
        "openvino_child",
        [str(model), *limits],
        vocab_size=target.vocab_size,
        rng=random.Random(target.seed),
    )
