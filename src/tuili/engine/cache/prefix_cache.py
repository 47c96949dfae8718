"""How full blocks are recognized: a sha256 chain over everything their keys and values depend on.

Knows hashes and token ids; which block holds what is the block pool's business.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as ListLike


def chain_root(*parts: str) -> bytes:
    """The hash before the first block: what the whole context depends on besides its tokens.

    The cache's number format and the cache salt go here, and so does an adapter where an engine has
    several. Each part is length-prefixed, so that ("a", "b") and ("ab", "") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def block_hash(parent: bytes, token_ids: ListLike[int], media: bytes = b"") -> bytes:
    """The hash of a block after `parent`. `media` identifies what placeholder ids stand for, if any."""
    return hashlib.sha256(parent + array("i", token_ids).tobytes() + media).digest()


class HashChain:
    """The block hashes of one growing sequence, computed once each."""

    __slots__ = ("_block_size", "_hashes", "root")

    def __init__(self, block_size: int, root: bytes) -> None:
        self._block_size = block_size
        self.root = root
        self._hashes: list[bytes] = []

    def first(self, num_blocks: int, token_ids: ListLike[int]) -> list[bytes]:
        """Hashes of the first `num_blocks` blocks of token_ids, which only ever grows at its end."""
        size = self._block_size
        for i in range(len(self._hashes), num_blocks):
            parent = self._hashes[-1] if self._hashes else self.root
            self._hashes.append(block_hash(parent, token_ids[i * size : (i + 1) * size]))
        return self._hashes[:num_blocks]

    def copy(self) -> HashChain:
        """An equal chain that goes its own way."""
        twin = HashChain(self._block_size, self.root)
        twin._hashes = list(self._hashes)
        return twin
