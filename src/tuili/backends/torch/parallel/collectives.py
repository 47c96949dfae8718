"""Tensors between the processes of a group: NCCL between GPUs, gloo between processes on the CPU.

The group is a value of ours: torch's default group, which the program around us may use, is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

_TIMEOUT = timedelta(minutes=30)  # of an operation; a process that ends is noticed at once
_POLL_S = 0.02
_LOOPBACK = "127.0.0.1"
_c10d: Any = torch.distributed  # whose stores and groups have no types


class ProcessRanks:
    """Ranks over one of torch's process groups.

    is_ordered: sums are made in the order of ranks, whatever their size; the libraries choose it by the size.
    """

    def __init__(self, group: Any, rank: int, size: int, *, is_ordered: bool) -> None:
        """Use join()."""
        self._group = group
        self._size = size
        self._is_ordered = is_ordered
        self.rank = rank

    def sum(self, x: Tensor) -> Tensor:
        if self._is_ordered:
            first, *others = self.gather(x)
            total = first.float()
            for other in others:
                total = total + other.float()
            return total.to(x.dtype)
        # gloo adds half precision up in half precision
        whole = x.float() if x.device.type == "cpu" else x.contiguous()
        self._group.allreduce([whole]).wait()
        return whole.to(x.dtype)

    def gather(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self._size)]
        self._group.allgather([parts], [x]).wait()
        return parts

    def share(self, x: Tensor, source: int) -> Tensor:
        x = x.contiguous()
        self._group.broadcast(x, source).wait()
        return x

    def send(self, x: Tensor, target: int) -> None:
        self._group.send([x.contiguous()], target, 0).wait()

    def receive(self, x: Tensor, source: int) -> Tensor:
        self._group.recv([x], source, 0).wait()
        return x

    def abort(self) -> None:
        """Ends what is under way, which would wait for ever for a process that is gone. For any thread."""
        self._group.abort()


def join(
    folder: Path,
    name: str,
    rank: int,
    size: int,
    device: torch.device,
    *,
    check: Callable[[], None],
    is_ordered: bool = False,
    is_ring: bool = False,
) -> ProcessRanks:
    """The group of that name, once all its processes have come. They find each other by a file in `folder`.

    check() is called while others are to come, and raises once one of them is gone. is_ring: each sends to the one
    behind it, the last to the first, and nothing else.
    """
    store = _c10d.PrefixStore(name, _c10d.FileStore(str(folder / name), size))
    _wait_for_all(store, rank, size, check)
    group = _nccl(store, rank, size) if device.type == "cuda" else _gloo(store, rank, size)
    ranks = ProcessRanks(group, rank, size, is_ordered=is_ordered)
    _connect(ranks, size, torch.zeros(1, device=device), is_ring)
    return ranks


def _wait_for_all(store: Any, rank: int, size: int, check: Callable[[], None]) -> None:
    """The libraries would wait as long for a process that has ended as for one that is slow."""
    store.set(f"here-{rank}", "")
    everybody = [f"here-{other}" for other in range(size)]
    while not store.check(everybody):
        check()
        time.sleep(_POLL_S)


def _connect(ranks: ProcessRanks, size: int, x: Tensor, is_ring: bool) -> None:
    """NCCL connects by that file when it is first used: now, as long as the file is there."""
    if not is_ring:
        ranks.gather(x)
        return
    for source in range(size):
        if ranks.rank == source:
            ranks.send(x, (source + 1) % size)
        elif ranks.rank == (source + 1) % size:
            ranks.receive(x, source)


def _gloo(store: Any, rank: int, size: int) -> Any:
    options = _c10d.ProcessGroupGloo._Options()
    options._devices = [_c10d.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
    options._timeout = _TIMEOUT
    return _c10d.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int) -> Any:
    options = _c10d.ProcessGroupNCCL.Options()
    options._timeout = _TIMEOUT
    return _c10d.ProcessGroupNCCL(store, rank, size, options)
