"""A rank of a group but the first: reads its part of the weights, and then does every step that it is told.

    python -m tuili.backends.torch.parallel.worker DESCRIPTOR PARENT

It dies with its parent, leaves signals to it, and ends when the socket does. Knows frames and a backend; no engine.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tuili.backend import BackendOptions, Int32, WeightSource
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.cache import is_out_of_memory
from tuili.backends.torch.parallel.batch_frames import batch_of
from tuili.backends.torch.parallel.frames import Frame, read_frame
from tuili.backends.torch.parallel.group import EXIT_NO_MEMORY
from tuili.backends.torch.parallel.loading import Place, load_rank
from tuili.config import EngineConfig
from tuili.errors import InsufficientMemoryError, TuiliError
from tuili.models.spec import ModelSpec
from tuili.parent_process import die_with
from tuili.program_log import start_logging
from tuili.quant.format import Tensor
from tuili.weights.checkpoint import open_checkpoint
from tuili.weights.quantizing import quantize_tensor, quantized_weights
from tuili.weights.recipes import find_recipe

EXIT_INTERNAL = 70  # EX_SOFTWARE
_log = logging.getLogger(__name__)


class RankProcess:
    """Answers the first rank until that closes the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._load: Callable[[], TorchBackend] | None = None  # once the files are open
        self._backend: TorchBackend | None = None

    def run(self) -> int:
        """The exit code."""
        threading.Thread(target=self._read, name="tuili-frames", daemon=True).start()
        self._reply("here")
        while (frame := self._frames.get()).word != "close":
            try:
                self._take(frame)
            except TuiliError as error:
                if frame.word != "step":
                    self._reply("error", kind=type(error).__name__, message=str(error))
                if frame.word in ("step", "measure"):  # within which others wait for this one
                    raise
        return 0

    def _read(self) -> None:
        """In a thread of its own: the other one may be within an operation that waits for who is gone."""
        with self._connection.makefile("rb") as stream:
            try:
                while (frame := read_frame(stream)) is not None:
                    self._frames.put(frame)
            except (OSError, EOFError) as error:
                _log.error("the rank ends: %s", error)
        os._exit(0)

    def _take(self, frame: Frame) -> None:
        if frame.word == "open":
            self._open(frame.values)
        elif frame.word == "join":
            assert self._load is not None, "told to join before it was told what"
            self._backend = self._load()
            self._reply("ready", weight_bytes=self._backend.weight_bytes)
        else:
            assert self._backend is not None, "a frame before the weights were loaded"
            self._work(self._backend, frame)

    def _open(self, values: Mapping[str, Any]) -> None:
        """What may fail without the others, who are about to wait for this one."""
        spec, weights = _opened(WeightSource(**values["source"]))
        place = Place(Path(values["folder"]), values["rank"], values["width"], tuple(values["ends"]))
        self._load = partial(load_rank, spec, weights, BackendOptions(**values["options"]), place)
        self._reply("open")

    def _work(self, backend: TorchBackend, frame: Frame) -> None:
        if frame.word == "step":
            backend.execute(batch_of(frame))
        elif frame.word in ("swap_out", "swap_in"):
            (backend.swap_out if frame.word == "swap_out" else backend.swap_in)(frame.arrays["copies"])
        elif frame.word == "groups":
            groups = backend.cache_groups(frame.values["block_size"])
            self._reply("done", block_bytes=[group.block_bytes for group in groups])
        elif frame.word == "allocate":
            backend.allocate_cache(frame.values["num_blocks"])
            self._reply("done")
        elif frame.word == "reserve":
            backend.reserve(frame.values["num_bytes"])
            self._reply("done")
        elif frame.word == "copy_blocks":
            _copy_blocks(backend, frame.arrays["copies"])
            self._reply("done")
        elif frame.word == "release":
            backend.release()
        elif frame.word == "allocate_swap":
            self._reply("done", seconds=backend.allocate_swap(frame.values["num_blocks"]))
        else:
            assert frame.word == "measure", frame.word
            room = backend.measure_room(EngineConfig(**frame.values["config"]), frame.values["utilization"])
            self._reply("done", room=None if room is None else asdict(room))

    def _reply(self, word: str, **values: object) -> None:
        self._connection.sendall(Frame(word, values).encoded())


def _copy_blocks(backend: TorchBackend, copies: Int32) -> None:
    """Raises InsufficientMemoryError, which is an answer."""
    try:
        backend.copy_blocks(copies)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InsufficientMemoryError("a block cannot be copied: no memory left") from error.with_traceback(None)


def _opened(source: WeightSource) -> tuple[ModelSpec, Mapping[str, Tensor]]:
    checkpoint = open_checkpoint(Path(source.path))
    if source.quantization is None:
        return checkpoint.spec, checkpoint.weights
    recipe = find_recipe(source.quantization)
    return checkpoint.spec, quantized_weights(checkpoint.weights, checkpoint.spec, recipe, quantize_tensor)


def main(arguments: list[str]) -> int:
    descriptor, parent = map(int, arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
    faulthandler.enable()
    start_logging()
    try:
        return RankProcess(socket.socket(fileno=descriptor)).run()
    except Exception as error:
        _log.critical("the rank failed", exc_info=error)
        return EXIT_NO_MEMORY if isinstance(error, RuntimeError) and is_out_of_memory(error) else EXIT_INTERNAL


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # threads and devices need no farewell
