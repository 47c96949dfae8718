"""The paged cache on the device: blocks of keys and values for every layer. Knows slots and tables; no attention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuili.backend import CacheGroup, Int32
from tuili.backends.torch.devices import synchronize
from tuili.backends.torch.ops import LayerCache
from tuili.backends.torch_sizes.footprint import cache_groups, cache_windows, token_bytes
from tuili.config import BLOCK_SIZES
from tuili.errors import InsufficientMemoryError, InvalidRequestError
from tuili.machine import available_memory
from tuili.models.spec import AttentionSpec

_SCALE = torch.float32
_HOST = torch.device("cpu")
_NUM_TIMED = 8  # blocks


class PagedCache:
    """One group for the layers of full attention, one for each distinct sliding window, in ascending order.

    Groups exist from the start; blocks, one LayerCache for each layer, from `allocate` on.
    """

    def __init__(
        self,
        layers: ListLike[AttentionSpec],
        dtype: torch.dtype,
        device: torch.device,
        num_host: int = 0,
        own: range | None = None,
    ) -> None:
        """The first num_host layers have their blocks in host memory, the others on the device.

        own: those that are here at all, where the model lies in stages; the groups are the same on each.
        """
        own = own or range(len(layers))
        self._specs = tuple(layers[own.start : own.stop])
        self._num_host = num_host
        self._dtype = dtype
        self._device = device
        self._has_scales = dtype.itemsize == 1
        self._all, self._own = tuple(layers), own
        self._windows = cache_windows(layers)
        self._block_size = 0
        self.group_of = tuple(self._windows.index(a.sliding_window) for a in self._specs)
        self.layers: list[LayerCache] = []
        self._host_layers: list[LayerCache] = []

    @property
    def block_size(self) -> int:
        return self._block_size

    def groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """What each group needs; also fixes the block size of the next `allocate`. Raises InvalidRequestError.

        Bytes are the device's, or the host's where a group is all there.
        """
        if block_size not in BLOCK_SIZES:
            raise InvalidRequestError(f"block_size must be one of {BLOCK_SIZES}, got {block_size}", param="block_size")
        self._block_size = block_size
        whole = cache_groups(self._all, self._dtype.itemsize, block_size, self._own)
        if not self._num_host:
            return whole
        layers = range(self._own.start + self._num_host, self._own.stop)
        on_device = cache_groups(self._all, self._dtype.itemsize, block_size, layers)
        return tuple(found if found.block_bytes else host for found, host in zip(on_device, whole, strict=True))

    def _token_bytes(self, window: int | None, first: int, end: int | None = None) -> int:
        """Of the layers [first, end) with that window."""
        return token_bytes([a for a in self._specs[first:end] if a.sliding_window == window], self._dtype.itemsize)

    def _host_bytes(self, num_blocks: ListLike[int]) -> int:
        end = len(self._specs) if self._device.type == "cpu" else self._num_host
        pairs = zip(self._windows, num_blocks, strict=True)
        return sum(self._block_size * n * self._token_bytes(window, 0, end) for window, n in pairs)

    def allocate(self, num_blocks: ListLike[int]) -> None:
        """Empty blocks for every group; what was cached before is gone. Raises InsufficientMemoryError."""
        assert self._block_size > 0, "cache_groups() states the block size before allocate_cache()"
        assert len(num_blocks) == len(self._windows)
        self.layers = []  # what is there now may be needed
        self._host_layers = []
        groups = self.groups(self._block_size)
        needed = sum(group.block_bytes * n for group, n in zip(groups, num_blocks, strict=True))
        message = f"a cache of {needed / 2**20:.0f} MiB does not fit on {self._device}"
        if (on_host := self._host_bytes(num_blocks)) > (free := available_memory()):  # the system would promise it
            raise InsufficientMemoryError(
                f"a cache of {on_host / 2**20:.0f} MiB does not fit on cpu: {free / 2**20:.0f} MiB are free"
            )
        try:
            self.layers = self._layers(num_blocks, self._num_host)
        except RuntimeError as error:
            self.layers = []
            if not is_out_of_memory(error):
                raise
            raise InsufficientMemoryError(message) from error

    def _layers(self, num_blocks: ListLike[int], num_host: int, *, is_pinned: bool = False) -> list[LayerCache]:
        """Zeroed: what is read beside a mask must be a number. The first num_host are in host memory."""
        layers = []
        for i, (a, group) in enumerate(zip(self._specs, self.group_of, strict=True)):
            device = _HOST if i < num_host else self._device
            options: dict[str, Any] = {"device": device, "pin_memory": is_pinned}
            shape = (num_blocks[group], self._block_size, a.num_kv_heads)
            planes = [torch.zeros(*shape, a.head_dim, dtype=self._dtype, **options) for _ in range(2)]
            if self._has_scales:
                planes += [torch.zeros(shape, dtype=_SCALE, **options) for _ in range(2)]
            layers.append(LayerCache(*planes))
        return layers

    def allocate_swap(self, num_blocks: ListLike[int]) -> float:
        """Blocks in host memory; the seconds that a byte is under way. Raises InsufficientMemoryError."""
        needed = sum(
            self._block_size * n * self._token_bytes(window, 0)
            for window, n in zip(self._windows, num_blocks, strict=True)
        )
        if needed > (free := available_memory()):
            raise InsufficientMemoryError(
                f"swap_space: {needed / 2**20:.0f} MiB do not fit into the host's memory: {free / 2**20:.0f} MiB are "
                "free"
            )
        self._host_layers = self._layers(num_blocks, len(self._specs), is_pinned=self._device.type == "cuda")
        limit = min(*num_blocks, *(len(layer.keys) for layer in self.layers), _NUM_TIMED)
        copies = np.array([(0, i, i) for i in range(limit)], np.int32).reshape(-1, 3)
        self.swap_out(copies)  # the first time is slower
        synchronize(self._device)
        started = time.perf_counter()
        self.swap_out(copies)
        synchronize(self._device)
        moved = limit * self._block_size * self._token_bytes(self._windows[0], 0)
        return (time.perf_counter() - started) / moved if moved else 0.0

    def swap_out(self, copies: Int32) -> None:
        """copies: [N, 3] (group, block, host block)."""
        self._swap(copies, self.layers, self._host_layers)

    def swap_in(self, copies: Int32) -> None:
        """copies: [N, 3] (group, host block, block)."""
        self._swap(copies, self._host_layers, self.layers)

    def _swap(self, copies: Int32, sources: ListLike[LayerCache], targets: ListLike[LayerCache]) -> None:
        """Nobody waits on a GPU: it reads and writes pinned memory in the order of its steps."""
        for group, source, target, count in _stretches(copies.tolist()):
            for layer_group, from_layer, to_layer in zip(self.group_of, sources, targets, strict=True):
                if layer_group == group:
                    for from_plane, to_plane in zip(from_layer.planes(), to_layer.planes(), strict=True):
                        moved = from_plane[source : source + count]
                        to_plane[target : target + count].copy_(moved, non_blocking=True)

    def copy_blocks(self, copies: Int32, on_device: Tensor) -> None:
        """copies: [N, 3] (group, src, dst), in order, here and on the device."""
        for start, end in pairwise(_runs(copies)):
            group, sources, targets = copies[start, 0], on_device[start:end, 1], on_device[start:end, 2]
            for layer, layer_group in zip(self.layers, self.group_of, strict=True):
                if layer_group == group:
                    for plane in layer.planes():
                        plane[targets.to(plane.device)] = plane[sources.to(plane.device)]


def _stretches(copies: list[list[int]]) -> Iterator[tuple[int, int, int, int]]:
    """(Group, source, target, number of blocks): copies whose blocks lie one behind the other are one."""
    start = 0
    for end in range(1, len(copies) + 1):
        group, source, target = copies[start]
        count = end - start
        if end == len(copies) or copies[end] != [group, source + count, target + count]:
            yield group, source, target, count
            start = end


def _runs(copies: Int32) -> list[int]:
    """Where to cut the copies so that those between two cuts may be done at once: one group, none reads another's."""
    cuts, written = [0], set[int]()
    for i, (group, source, target) in enumerate(copies.tolist()):
        if i and (group != copies[i - 1, 0] or source in written or target in written):
            cuts.append(i)
            written.clear()
        written.add(target)
    return [*cuts, len(copies)] if len(copies) else [0]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the host had no memory left."""
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # host, pinned or MPS, cuBLAS
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in words)
