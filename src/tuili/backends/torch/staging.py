"""Host memory that weights pass on their way to the device, prepared by several threads. Knows bytes; no weights."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tuili.quant.format import Bytes

PIECE_BYTES = 1 << 23  # a thread's work: long beside a switch of threads, short beside a weight
_NUM_THREADS = min(8, os.cpu_count() or 1)

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `work` makes of each item, in threads that are a few items ahead. It must let go of the interpreter's lock
    to gain anything, as NumPy does.
    """
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="tuili-weights") as pool:
        ahead: deque[Any] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > _NUM_THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class Staging:
    """Buffers that take turns, pinned for CUDA: the device copies from some while threads fill others."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._free: deque[tuple[Tensor, Any]] = deque()  # and the event after which each is

    def through(self, pieces: Iterable[Bytes]) -> Iterator[Tensor]:
        """The bytes of each piece, uint8 [n], in order. Copies from it may be under way when the next is asked for."""
        for host, size, done in in_order(self._fill, map(self._with_buffer, pieces)):
            yield host[:size]
            if done is not None:
                done.record()
            self._free.append((host, done))

    def _with_buffer(self, piece: Bytes) -> tuple[Bytes, Tensor, Any]:
        if self._free and self._free[0][0].numel() >= piece.nbytes:
            host, done = self._free.popleft()
            if done is not None:
                done.synchronize()
            return piece, host, done
        host = torch.empty(max(PIECE_BYTES, piece.nbytes), dtype=torch.uint8, pin_memory=self._is_cuda)
        return piece, host, torch.cuda.Event() if self._is_cuda else None

    @staticmethod
    def _fill(work: tuple[Bytes, Tensor, Any]) -> tuple[Tensor, int, Any]:
        piece, host, done = work
        np.copyto(host.numpy()[: piece.nbytes], piece.reshape(-1))
        return host, piece.nbytes, done
