"""A rank that runs out of memory when it is told to.

    python scarce_rank.py FILE DESCRIPTOR PARENT

FILE holds JSON, read each time: "reserve", the bytes that it has for a step, and "tokens", how many it can compute.
It has no memory to measure its device.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.model import Model
from tuili.backends.torch.parallel import worker
from tuili.errors import InsufficientMemoryError


def limit(file: Path) -> None:
    """From now on in this process."""
    reserve, hidden = TorchBackend.reserve, Model.hidden

    def limited_reserve(self: TorchBackend, num_bytes: int) -> None:
        if num_bytes > json.loads(file.read_text())["reserve"]:
            raise InsufficientMemoryError("nothing left")
        reserve(self, num_bytes)

    def limited_hidden(self: Model, input_ids: torch.Tensor, *others: Any) -> Any:
        if len(input_ids) > json.loads(file.read_text())["tokens"]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return hidden(self, input_ids, *others)

    def no_room(self: TorchBackend, *_: Any) -> None:
        raise InsufficientMemoryError("a step finds no memory")

    TorchBackend.measure_room = no_room  # type: ignore[method-assign, assignment]
    TorchBackend.reserve = limited_reserve  # type: ignore[method-assign]
    Model.hidden = limited_hidden  # type: ignore[method-assign]


if __name__ == "__main__":
    limit(Path(sys.argv[1]))
    os._exit(worker.main(sys.argv[2:]))
