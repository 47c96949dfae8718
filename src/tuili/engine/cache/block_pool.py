"""The blocks of one cache group: who holds each, and which can still be found by their hash.

Every block is in exactly one place:

    free     nobody holds it, it holds nothing worth finding
    cached   nobody holds it, its hash can still find it; least recently used first
    used     one or more table entries hold it (reference count); full ones may also be findable
    away     taken out of the pool until it is made larger again

A block that is away or was never handed out is untouched: it takes no memory.
Knows block numbers and hashes; not sequences, tokens or memory.
"""

from __future__ import annotations

from collections import OrderedDict

from tuili.backend import Int64


class BlockPool:
    """Reference counts, the free list and the hash table of `size` blocks, of which num_blocks are not away."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_blocks = size
        self.num_untouched = size  # of the free ones: the first so many, the lowest last
        self._refcounts = [0] * size
        self._free = list(range(size - 1, -1, -1))
        self._away: list[int] = []
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that allocate() can hand out: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def refcount(self, block: int) -> int:
        return self._refcounts[block]

    def allocate(self) -> int:
        """Hands out a block with reference count 1; cached blocks are given up last, the oldest first."""
        if self._free:
            block = self._free.pop()
            self.num_untouched = min(self.num_untouched, len(self._free))
        else:
            block = self._uncache_oldest()
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

    def take_away(self, count: int) -> list[int]:
        """Takes out so many of the num_free blocks: untouched ones first, then free ones, then cached ones, the oldest.

        Returns them: their memory is to be given back, if there are touched ones among them.
        """
        assert 0 <= count <= self.num_free
        while len(self._free) < count:
            self._free.append(self._uncache_oldest())
        taken, self._free = self._free[:count], self._free[count:]
        self.num_untouched = max(0, self.num_untouched - count)
        self._away += taken
        self.num_blocks -= count
        return taken

    def bring_back(self, count: int) -> None:
        """Undoes take_away for so many blocks, the lowest first."""
        assert 0 <= count <= len(self._away)
        self._away.sort()
        back, self._away = self._away[:count], self._away[count:]
        self._free[: self.num_untouched] = sorted(self._free[: self.num_untouched] + back, reverse=True)
        self.num_untouched += count
        self.num_blocks += count

    def forget(self) -> None:
        """Makes nothing findable any more: cached blocks become free."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._hash_of.clear()
        self._block_of.clear()

    def check(self, references: Int64) -> None:
        """Asserts the invariants; references [size] counts the table entries that hold each block."""
        assert references.tolist() == self._refcounts, "reference counts differ from the block tables"
        used = {block for block, count in enumerate(self._refcounts) if count > 0}
        places = (set(self._free), set(self._cached), used, set(self._away))
        assert len(self._free) == len(places[0]), "a block is twice in the free list"
        assert sum(map(len, places)) == self.size == len(set().union(*places)), "a block is lost or in two places"
        assert self.num_blocks == self.size - len(self._away), "blocks that are away are counted"
        assert self.num_untouched <= len(self._free), "untouched blocks are not free"
        assert self._block_of == {digest: block for block, digest in self._hash_of.items()}, "hash tables disagree"
        assert set(self._cached) <= self._hash_of.keys(), "a cached block cannot be found"
        assert not places[0] & self._hash_of.keys(), "a free block can be found"

    def _uncache_oldest(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block
