"""The paged cache: keys and values of every layer as float32 arrays of blocks. Knows slots and tables; no attention."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

import numpy as np

from tuili.backend import CacheGroup, Float32, Int32, window_groups
from tuili.config import KvCacheDtype
from tuili.errors import InsufficientMemoryError
from tuili.models.spec import AttentionSpec


class PagedCache:
    """One group for the layers of full attention, one for each distinct sliding window, in ascending order.

    Groups exist from the start; blocks from `allocate` on. A layer's arrays are
    [num_blocks, block_size, num_kv_heads, head_dim]. Values stay float32, but int8 rounds them as the cpu
    backend's cache does.
    """

    def __init__(self, layers: tuple[AttentionSpec, ...], dtype: KvCacheDtype = "auto") -> None:
        self._layers = layers
        self._rounds_to_int8 = dtype == "int8"
        windows = {a.sliding_window for a in layers}
        self._windows = tuple(sorted(windows, key=lambda window: window or 0))  # None, full attention, comes first
        self._block_size = 0
        self._keys: list[Float32] = []
        self._values: list[Float32] = []

    def group_of(self, layer: int) -> int:
        return self._windows.index(self._layers[layer].sliding_window)

    def groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """What each group needs; also fixes the block size of the next `allocate`."""
        self._block_size = block_size
        sizes = [
            sum(_block_bytes(a, block_size) for a in self._layers if a.sliding_window == window)
            for window in self._windows
        ]
        return window_groups(self._windows, sizes, block_size)

    def allocate(self, num_blocks: ListLike[int]) -> None:
        """Empty blocks for every group; what was cached before is gone. Raises InsufficientMemoryError."""
        assert self._block_size > 0, "cache_groups() states the block size before allocate_cache()"
        assert len(num_blocks) == len(self._windows)
        self._keys, self._values = [], []
        shapes = [
            (num_blocks[self.group_of(i)], self._block_size, a.num_kv_heads, a.head_dim)
            for i, a in enumerate(self._layers)
        ]
        try:
            self._keys = [np.zeros(shape, np.float32) for shape in shapes]
            self._values = [np.zeros(shape, np.float32) for shape in shapes]
        except MemoryError as error:
            blocks = ", ".join(str(n) for n in num_blocks)
            raise InsufficientMemoryError(f"a cache of {blocks} blocks of {self._block_size} does not fit") from error

    def copy_blocks(self, copies: Int32) -> None:
        """copies: [N, 3] (group, src, dst), in order."""
        for group, src, dst in copies.tolist():
            for i in range(len(self._layers)):
                if self.group_of(i) == group:
                    self._keys[i][dst] = self._keys[i][src]
                    self._values[i][dst] = self._values[i][src]

    def write(self, layer: int, slots: Int32, keys: Float32, values: Float32) -> None:
        """keys, values: [T, num_kv_heads, head_dim] go to slots [T]."""
        blocks, offsets = slots // self._block_size, slots % self._block_size
        assert (slots >= 0).all(), "a token has no slot"
        if self._rounds_to_int8:
            keys, values = through_int8(keys), through_int8(values)
        self._keys[layer][blocks, offsets] = keys
        self._values[layer][blocks, offsets] = values

    def read(self, layer: int, block_table: Int32, first: int, end: int) -> tuple[Float32, Float32]:
        """Keys and values [end - first, num_kv_heads, head_dim] of positions [first, end)."""
        positions = np.arange(first, end)
        blocks, offsets = block_table[positions // self._block_size], positions % self._block_size
        assert (blocks >= 0).all(), "a position that attention needs has no block"
        return self._keys[layer][blocks, offsets], self._values[layer][blocks, offsets]


def through_int8(heads: Float32) -> Float32:
    """Rounds each head, the last axis, to int8 times max|x| / 127 and back."""
    scale = np.abs(heads).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    rounded: Float32 = np.rint(heads * inverse) * scale
    return rounded


def _block_bytes(a: AttentionSpec, block_size: int) -> int:
    return 2 * block_size * a.num_kv_heads * a.head_dim * np.dtype(np.float32).itemsize
