"""Cached blocks of preempted sequences in host memory, until these go on. Knows what that costs, no order.

preempted: blocks of the computed tokens ──> host blocks        admitted again: new blocks <── host blocks
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as ListLike
from typing import NamedTuple

import numpy as np

from tuili.backend import Backend, CacheGroup, Int32, SwappingBackend
from tuili.config import EngineConfig
from tuili.engine.cache.block_manager import BlockManager, Held
from tuili.engine.sequence import Chunk, Sequence

_KEPT = 0.8  # of what is known of a token's time, at every step with prompts
_log = logging.getLogger(__name__)


class _Saved(NamedTuple):
    num_tokens: int
    held: list[Held]  # by group, with host blocks


class SwapSpace:
    """Host blocks of every cache group, and which sequences have them."""

    def __init__(self, backend: SwappingBackend, groups: ListLike[CacheGroup], num_bytes: int) -> None:
        """Raises InsufficientMemoryError."""
        self._backend = backend
        self._block_bytes = [group.block_bytes for group in groups]
        count = num_bytes // sum(self._block_bytes)
        self._byte_s = backend.allocate_swap([count] * len(groups))
        self._token_s: float | None = None  # of a prompt's token; not known yet
        self._free = [list(range(count)) for _ in groups]
        self._num_blocks = count
        self._saved: dict[Sequence, _Saved] = {}
        self.num_swaps = 0  # sequences that were saved

    def observe(self, chunks: ListLike[Chunk], seconds: float) -> None:
        """Takes note of what a step took: of those with prompts, what computing anew costs."""
        if any(chunk.num_tokens > 1 for chunk in chunks):
            found = seconds / sum(chunk.num_tokens for chunk in chunks)
            self._token_s = found if self._token_s is None else _KEPT * self._token_s + (1 - _KEPT) * found

    def save(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Keeps what a running sequence has computed, where there is room and that costs less than computing."""
        num_tokens = sequence.num_computed_tokens
        held = blocks.held(sequence.slot, num_tokens)
        num_bytes = sum(size * len(own.blocks) for size, own in zip(self._block_bytes, held, strict=True))
        is_cheap = self._token_s is None or 2 * num_bytes * self._byte_s < num_tokens * self._token_s
        has_room = all(len(own.blocks) <= len(free) for own, free in zip(held, self._free, strict=True))
        if not num_tokens or not is_cheap or not has_room:
            return
        host = [Held(own.first, [free.pop() for _ in own.blocks]) for own, free in zip(held, self._free, strict=True)]
        self._backend.swap_out(_copies(held, host))
        self._saved[sequence] = _Saved(num_tokens, host)
        self.num_swaps += 1

    def num_tokens(self, sequence: Sequence) -> int:
        """How many of its tokens need not be computed anew."""
        saved = self._saved.get(sequence)
        return 0 if saved is None else saved.num_tokens

    def restore(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Fills the empty table of a slot with what was saved.

        The backend does it at once, before the copies of blocks that the step begins with: none of those may read a
        block that is free by now, which holds as nobody is admitted in a step in which somebody was preempted.
        """
        saved = self._saved[sequence]
        held = blocks.restore(sequence.slot, [(own.first, len(own.blocks)) for own in saved.held])
        self._backend.swap_in(_copies(saved.held, held))
        self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forgets what was saved of a sequence, if anything was."""
        saved = self._saved.pop(sequence, None)
        if saved is not None:
            for free, own in zip(self._free, saved.held, strict=True):
                free += own.blocks

    def forget(self) -> None:
        """Forgets everything."""
        for sequence in list(self._saved):
            self.drop(sequence)

    def check(self, waiting: ListLike[Sequence]) -> None:
        """Asserts that only waiting sequences have host blocks, and each block is in one place."""
        assert set(self._saved) <= set(waiting), "a sequence that does not wait holds host blocks"
        for g, free in enumerate(self._free):
            found = free + [block for saved in self._saved.values() for block in saved.held[g].blocks]
            assert sorted(found) == list(range(self._num_blocks)), "a host block is lost or in two places"


def open_swap(backend: Backend, groups: ListLike[CacheGroup], config: EngineConfig) -> SwapSpace | None:
    """None without config.swap_bytes, and with a backend whose cache is in host memory anyway."""
    if not config.swap_bytes:
        return None
    if not isinstance(backend, SwappingBackend):
        _log.info("swap_space has no effect: the backend's KV cache is in host memory anyway")
        return None
    return SwapSpace(backend, groups, config.swap_bytes)


def _copies(sources: ListLike[Held], targets: ListLike[Held]) -> Int32:
    """[N, 3] (group, source, target)."""
    pairs = zip(sources, targets, strict=True)
    rows = [(g, *both) for g, (a, b) in enumerate(pairs) for both in zip(a.blocks, b.blocks, strict=True)]
    return np.array(rows, np.int32).reshape(-1, 3)
