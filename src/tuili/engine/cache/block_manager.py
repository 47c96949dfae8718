"""Which blocks hold which tokens of which slot, in every cache group.

A slot is a running sequence's fixed number. Its table in a group, with block_size 4 and window 6,
once tokens 0..9 are computed and 10 is next (which sees 5..10):

    full     | 7 | 2 | 9 |         blocks of tokens 0-3, 4-7, 8-11
    window   | -1| 3 | 8 |         tokens 0-3 have fallen behind the window: their block is freed

Full blocks are never written again and may be shared by any number of tables; the last, partial
one is copied before a write while it is shared (fork). Knows slots and blocks, not sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from typing import NamedTuple

import numpy as np

from tuili.backend import CacheGroup, Int32
from tuili.engine.cache.block_pool import BlockPool

NO_COPIES: Int32 = np.empty((0, 3), dtype=np.int32)


class Held(NamedTuple):
    """A run of a table's entries: the first one's place, and the blocks."""

    first: int
    blocks: list[int]


def num_spanned(num_tokens: int, block_size: int) -> int:
    """Most blocks that a run of `num_tokens` tokens can touch, wherever it starts."""
    return (num_tokens + block_size - 2) // block_size + 1


class BlockManager:
    """Block tables [group, slot, block] over one BlockPool per cache group."""

    def __init__(
        self,
        groups: ListLike[CacheGroup],
        num_blocks: ListLike[int],
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        self.block_size = groups[0].block_size
        self.pools = tuple(BlockPool(count) for count in num_blocks)
        self.tables: Int32 = np.full(
            (len(groups), max_num_seqs, -(-max_model_len // self.block_size)), -1, dtype=np.int32
        )
        self._windows = tuple(group.window if group.kind == "window" else None for group in groups)
        self._window_groups = tuple(g for g, window in enumerate(self._windows) if window is not None)
        self._peaks = tuple(
            None if window is None else num_spanned(window - 1 + max_num_batched_tokens, self.block_size)
            for window in self._windows
        )
        self._num_blocks = [0] * max_num_seqs  # table entries in use, -1 among them
        self._first_live = [[0] * max_num_seqs for _ in groups]  # entries before it are -1
        self._maybe_shared: set[int] = set()  # slots whose last block a fork may hold too
        self._ready_until = [0] * max_num_seqs  # tokens before it are writable with no change to the table
        self.num_changes = 0  # to the tables, so far
        self._copies: list[tuple[int, int, int]] = []

    @property
    def capacity(self) -> int | None:
        """Tokens of context that one sequence alone can have in the cache; None is no limit."""
        limits = [
            pool.num_blocks * self.block_size
            for pool, peak in zip(self.pools, self._peaks, strict=True)
            if peak is None or pool.num_blocks < peak
        ]
        return min(limits, default=None)

    def match(self, hashes: ListLike[bytes]) -> int:
        """The longest prefix, in blocks, of which each group still has what the next token needs.

        A full group needs every block, a window group those of the last window only.
        """
        count = len(hashes)
        while gaps := [gap for g in range(len(self.pools)) if (gap := self._first_gap(g, hashes[:count])) is not None]:
            count = min(gaps)  # a shorter prefix that still reached a gap would need it as well
        return count

    def fits(self, num_tokens: int, hashes: ListLike[bytes]) -> bool:
        """Whether a context of num_tokens that reuses the blocks of `hashes` finds room in every group now."""
        total = -(-num_tokens // self.block_size)
        for g, pool in enumerate(self.pools):
            first = self._first_needed(g, len(hashes) * self.block_size)
            found = [pool.find(digest) for digest in hashes[first:]]
            unheld = sum(block is not None and pool.refcount(block) == 0 for block in found)
            live = min(total - first, self._peaks[g] or total)
            if max(live - len(found), 0) + unheld > pool.num_free:
                return False
        return True

    def reuse(self, slot: int, hashes: ListLike[bytes]) -> None:
        """Fills an empty slot's table with the blocks that match() found."""
        for g, pool in enumerate(self.pools):
            first = self._first_needed(g, len(hashes) * self.block_size)
            self._first_live[g][slot] = first
            for i in range(first, len(hashes)):
                block = pool.find(hashes[i])
                assert block is not None
                pool.acquire(block)
                self.tables[g, slot, i] = block
        self._num_blocks[slot] = len(hashes)
        self._change(slot)

    def grow(self, slot: int, start: int, end: int) -> bool:
        """Makes tokens [start, end) of a slot writable; False, and nothing taken, when blocks run out.

        First frees what no query from `start` on can see.
        """
        if end <= self._ready_until[slot]:
            return True
        self.num_changes += 1
        self._trim(slot, start)
        shared = self._shared_groups(slot, start) if slot in self._maybe_shared else []
        missing = max(-(-end // self.block_size) - self._num_blocks[slot], 0)
        if missing or shared:
            if any(pool.num_free < missing + (g in shared) for g, pool in enumerate(self.pools)):
                return False
            for g in shared:
                self._copy_block(g, slot, start // self.block_size)
            self._append_blocks(slot, missing)
        self._maybe_shared.discard(slot)
        self._ready_until[slot] = self._end_of_ready(slot)
        return True

    def shrink(self, slot: int, end: int) -> None:
        """Gives back the blocks of a slot that lie wholly behind token `end - 1`."""
        needed, count = -(-end // self.block_size), self._num_blocks[slot]
        if needed >= count:
            return
        for g, pool in enumerate(self.pools):
            for block in reversed(self.tables[g, slot, needed:count].tolist()):
                pool.release(block)
        self.tables[:, slot, needed:count] = -1
        self._num_blocks[slot] = needed
        self._change(slot)

    def register(self, slot: int, first_block: int, hashes: ListLike[bytes]) -> None:
        """Makes full blocks first_block, first_block + 1, ... of a slot findable under `hashes`."""
        for g, pool in enumerate(self.pools):
            for i, digest in enumerate(hashes, start=first_block):
                if (block := int(self.tables[g, slot, i])) >= 0:
                    pool.register(block, digest)

    def fork(self, source: int, target: int) -> None:
        """Gives an empty slot the same blocks; whoever writes into a shared one first gets a copy."""
        count = self._num_blocks[source]
        self.tables[:, target, :count] = self.tables[:, source, :count]
        self._num_blocks[target] = count
        for g, pool in enumerate(self.pools):
            first = self._first_live[g][target] = self._first_live[g][source]
            for block in self.tables[g, target, first:count].tolist():
                pool.acquire(block)
        self._maybe_shared |= {source, target}
        self._change(source)
        self._change(target)

    def held(self, slot: int, num_tokens: int) -> list[Held]:
        """By group, the blocks that a slot still has of its first tokens."""
        end = -(-num_tokens // self.block_size)
        firsts = [min(live[slot], end) for live in self._first_live]
        return [Held(first, self.tables[g, slot, first:end].tolist()) for g, first in enumerate(firsts)]

    def restore(self, slot: int, spans: ListLike[tuple[int, int]]) -> list[Held]:
        """Gives an empty slot new blocks in the places (first, count) of each group, all of which end alike."""
        held = [
            Held(first, [pool.allocate() for _ in range(n)]) for (first, n), pool in zip(spans, self.pools, strict=True)
        ]
        for g, (first, blocks) in enumerate(held):
            self.tables[g, slot, first : first + len(blocks)] = blocks
            self._first_live[g][slot] = first
        self._num_blocks[slot] = sum(spans[0])
        self._change(slot)
        return held

    def free(self, slot: int) -> None:
        """Empties a slot's table, its end first, so that of what stays cached beginnings live longest."""
        count = self._num_blocks[slot]
        for g, pool in enumerate(self.pools):
            for block in reversed(self.tables[g, slot, self._first_live[g][slot] : count].tolist()):
                pool.release(block)
            self._first_live[g][slot] = 0
        self.tables[:, slot, :count] = -1
        self._num_blocks[slot] = 0
        self._maybe_shared.discard(slot)
        self._change(slot)

    @property
    def has_copies(self) -> bool:
        """Whether take_copies() has some to tell."""
        return bool(self._copies)

    def take_copies(self) -> Int32:
        """[N, 3] (group, source, target) that grow() asked for since the last call, to be done in this order."""
        if not self._copies:
            return NO_COPIES
        copies = np.array(self._copies, dtype=np.int32)
        self._copies.clear()
        return copies

    def forget(self) -> None:
        """Empties the prefix cache."""
        for pool in self.pools:
            pool.forget()

    def check(self) -> None:
        """Asserts that tables, reference counts, free lists and hash tables agree."""
        for g, pool in enumerate(self.pools):
            held = self.tables[g]
            for slot, count in enumerate(self._num_blocks):
                first = self._first_live[g][slot]
                assert (held[slot, first:count] >= 0).all(), f"slot {slot} has a hole in group {g}"
                assert (held[slot, :first] < 0).all(), f"slot {slot} holds blocks behind the window in group {g}"
                assert (held[slot, count:] < 0).all(), f"slot {slot} holds blocks past its end in group {g}"
            pool.check(np.bincount(held[held >= 0], minlength=pool.size))

    def _change(self, slot: int) -> None:
        self.num_changes += 1
        self._ready_until[slot] = 0

    def _end_of_ready(self, slot: int) -> int:
        """Where the blocks of an unshared slot end, or where a token first sees a window's first block no more."""
        end = self._num_blocks[slot] * self.block_size
        for g in self._window_groups:
            window = self._windows[g]
            assert window is not None
            end = min(end, (self._first_live[g][slot] + 1) * self.block_size + window - 1)
        return end

    def _first_needed(self, group: int, position: int) -> int:
        """The first block that a query at `position` or later can see."""
        window = self._windows[group]
        return 0 if window is None else max(position - window + 1, 0) // self.block_size

    def _first_gap(self, group: int, hashes: ListLike[bytes]) -> int | None:
        """The first block that the token after these blocks would need and the group no longer has."""
        first = self._first_needed(group, len(hashes) * self.block_size)
        return next((i for i in range(first, len(hashes)) if self.pools[group].find(hashes[i]) is None), None)

    def _trim(self, slot: int, position: int) -> None:
        for g in self._window_groups:
            first, live = self._first_needed(g, position), self._first_live[g][slot]
            if first <= live:
                continue
            for block in self.tables[g, slot, live:first].tolist():
                self.pools[g].release(block)
            self.tables[g, slot, live:first] = -1
            self._first_live[g][slot] = first

    def _shared_groups(self, slot: int, start: int) -> list[int]:
        """Groups in which the block of token `start` exists and others hold it too."""
        i = start // self.block_size
        if i >= self._num_blocks[slot]:
            return []
        return [g for g, pool in enumerate(self.pools) if pool.refcount(int(self.tables[g, slot, i])) > 1]

    def _copy_block(self, group: int, slot: int, i: int) -> None:
        source = int(self.tables[group, slot, i])
        target = self.pools[group].allocate()
        self.pools[group].release(source)
        self.tables[group, slot, i] = target
        self._copies.append((group, source, target))

    def _append_blocks(self, slot: int, count: int) -> None:
        for g, pool in enumerate(self.pools):
            for i in range(self._num_blocks[slot], self._num_blocks[slot] + count):
                self.tables[g, slot, i] = pool.allocate()
        self._num_blocks[slot] += count
