"""The paged cache on the device: blocks of keys and values for every layer. Knows slots and tables; no attention."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from itertools import pairwise

import torch
from torch import Tensor

from tuili.backend import CacheGroup, Int32, window_groups
from tuili.backends.torch.ops import LayerCache
from tuili.config import BLOCK_SIZES
from tuili.errors import InsufficientMemoryError, InvalidRequestError
from tuili.machine import available_memory
from tuili.models.spec import AttentionSpec

_SCALE = torch.float32


class PagedCache:
    """One group for the layers of full attention, one for each distinct sliding window, in ascending order.

    Groups exist from the start; blocks, one LayerCache for each layer, from `allocate` on.
    """

    def __init__(self, layers: ListLike[AttentionSpec], dtype: torch.dtype, device: torch.device) -> None:
        self._specs = tuple(layers)
        self._dtype = dtype
        self._device = device
        self._has_scales = dtype.itemsize == 1
        self._windows = tuple(sorted({a.sliding_window for a in layers}, key=lambda window: window or 0))
        self._block_size = 0
        self.group_of = tuple(self._windows.index(a.sliding_window) for a in layers)
        self.layers: list[LayerCache] = []

    @property
    def block_size(self) -> int:
        return self._block_size

    def groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """What each group needs; also fixes the block size of the next `allocate`. Raises InvalidRequestError."""
        if block_size not in BLOCK_SIZES:
            raise InvalidRequestError(f"block_size must be one of {BLOCK_SIZES}, got {block_size}", param="block_size")
        self._block_size = block_size
        sizes = [
            block_size * sum(self._token_bytes(a) for a in self._specs if a.sliding_window == window)
            for window in self._windows
        ]
        return window_groups(self._windows, sizes, block_size)

    def _token_bytes(self, a: AttentionSpec) -> int:
        head_bytes = a.head_dim * self._dtype.itemsize + (_SCALE.itemsize if self._has_scales else 0)
        return 2 * a.num_kv_heads * head_bytes

    def allocate(self, num_blocks: ListLike[int]) -> None:
        """Empty blocks for every group; what was cached before is gone. Raises InsufficientMemoryError."""
        assert self._block_size > 0, "cache_groups() states the block size before allocate_cache()"
        assert len(num_blocks) == len(self._windows)
        self.layers = []  # what is there now may be needed
        groups = self.groups(self._block_size)
        needed = sum(group.block_bytes * n for group, n in zip(groups, num_blocks, strict=True))
        message = f"a cache of {needed / 2**20:.0f} MiB does not fit on {self._device}"
        if self._device.type == "cpu" and needed > (free := available_memory()):  # the system would promise it
            raise InsufficientMemoryError(f"{message}: {free / 2**20:.0f} MiB are free")
        try:
            self.layers = [self._layer(a, num_blocks[g]) for a, g in zip(self._specs, self.group_of, strict=True)]
        except RuntimeError as error:
            self.layers = []
            if not is_out_of_memory(error):
                raise
            raise InsufficientMemoryError(message) from error

    def _layer(self, a: AttentionSpec, num_blocks: int) -> LayerCache:
        """Zeroed: what is read beside a mask must be a number."""
        shape = (num_blocks, self._block_size, a.num_kv_heads)
        keys, values = (torch.zeros(*shape, a.head_dim, dtype=self._dtype, device=self._device) for _ in range(2))
        if not self._has_scales:
            return LayerCache(keys, values)
        scales = [torch.zeros(shape, dtype=_SCALE, device=self._device) for _ in range(2)]
        return LayerCache(keys, values, *scales)

    def copy_blocks(self, copies: Int32, on_device: Tensor) -> None:
        """copies: [N, 3] (group, src, dst), in order, here and on the device."""
        for start, end in pairwise(_runs(copies)):
            group, sources, targets = copies[start, 0], on_device[start:end, 1], on_device[start:end, 2]
            for layer, layer_group in zip(self.layers, self.group_of, strict=True):
                if layer_group == group:
                    for plane in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
                        if plane is not None:
                            plane[targets] = plane[sources]


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
