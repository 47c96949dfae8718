"""The blocks of one cache group: who holds each, and which can still be found by their hash.

Every block is in exactly one place:

    free     nobody holds it, it holds nothing worth finding
    cached   nobody holds it, its hash can still find it; least recently used first
    used     one or more table entries hold it (reference count); full ones may also be findable

Knows block numbers and hashes; not sequences, tokens or memory.
"""

from __future__ import annotations

from collections import OrderedDict

from tuili.backend import Int64


class BlockPool:
    """Reference counts, the free list and the hash table of `num_blocks` blocks."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_touched = 0  # blocks from here on have never been handed out
        self._refcounts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that allocate() can hand out: free and cached ones."""
        return len(self._free) + len(self._cached)

    def refcount(self, block: int) -> int:
        return self._refcounts[block]

    def allocate(self) -> int:
        """Hands out a block with reference count 1; cached blocks are given up last, the oldest first."""
        if self._free:
            block = self._free.pop()  # at its front are those never handed out, the last first
            self.num_touched = max(self.num_touched, block + 1)
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._refcounts[block] = 1
        return block

    def acquire(self, block: int) -> None:
        """One more holder of a used or cached block."""
        if self._refcounts[block] == 0:
            del self._cached[block]
        self._refcounts[block] += 1

    def release(self, block: int) -> None:
        """One holder less; the last one leaves the block cached if it can be found, else free."""
        self._refcounts[block] -= 1
        if self._refcounts[block] > 0:
            return
        if block in self._hash_of:
            self._cached[block] = None
        else:
            self._free.append(block)

    def register(self, block: int, digest: bytes) -> None:
        """Makes a full block findable; if an equal block already is, that one stays the findable one."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block with this content, or None."""
        return self._block_of.get(digest)

    def resize(self, num_blocks: int) -> None:
        """Takes blocks away, or adds some, behind those that were handed out once: at least num_touched stay."""
        assert num_blocks >= self.num_touched
        self._free[: self.num_blocks - self.num_touched] = range(num_blocks - 1, self.num_touched - 1, -1)
        self._refcounts[self.num_touched :] = [0] * (num_blocks - self.num_touched)
        self.num_blocks = num_blocks

    def forget(self) -> None:
        """Makes nothing findable any more: cached blocks become free."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._hash_of.clear()
        self._block_of.clear()

    def check(self, references: Int64) -> None:
        """Asserts the invariants; references [num_blocks] counts the table entries that hold each block."""
        assert references.tolist() == self._refcounts, "reference counts differ from the block tables"
        used = {block for block, count in enumerate(self._refcounts) if count > 0}
        places = (set(self._free), set(self._cached), used)
        assert len(self._free) == len(places[0]), "a block is twice in the free list"
        assert sum(map(len, places)) == self.num_blocks == len(set().union(*places)), "a block is lost or in two places"
        assert self._block_of == {digest: block for block, digest in self._hash_of.items()}, "hash tables disagree"
        assert set(self._cached) <= self._hash_of.keys(), "a cached block cannot be found"
        assert not places[0] & self._hash_of.keys(), "a free block can be found"
