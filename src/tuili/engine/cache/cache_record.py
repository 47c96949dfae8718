"""Why the prefix cache had no more of a prompt: what was computed lately behind which block.

Keeps token ids by the hash of the block before them, so that one look tells where a prompt parts from what there was.
The hash stands for the salt too: what others computed under theirs is never compared. Knows hashes and ids, no blocks.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence as ListLike

from tuili.types import CacheMiss

MAX_PLACES = 8192  # hashes behind which something is remembered, the latest
MAX_BRANCHES = 8  # blocks remembered behind one of them


class CacheRecord:
    """The blocks computed lately, as token ids."""

    def __init__(self) -> None:
        self._branches: OrderedDict[bytes, list[array[int]]] = OrderedDict()

    def note(self, parent: bytes, token_ids: ListLike[int]) -> None:
        """A full block was computed behind the one whose hash is `parent`."""
        block = array("i", token_ids)
        branches = self._branches.setdefault(parent, [])
        self._branches.move_to_end(parent)
        if block in branches:
            branches.remove(block)
        branches.append(block)
        del branches[:-MAX_BRANCHES]
        if len(self._branches) > MAX_PLACES:
            self._branches.popitem(last=False)

    def explain(self, parent: bytes, token_ids: ListLike[int], position: int, *, is_salted: bool) -> CacheMiss:
        """Why the full block token_ids, at `position` behind the hash `parent`, was not in the cache."""
        branches = self._branches.get(parent)
        if branches is None:
            return CacheMiss("new_salt" if is_salted and position == 0 else "new", position)
        block = array("i", token_ids)
        if block in branches:
            return CacheMiss("evicted", position)
        shared = max(_num_shared(block, branch) for branch in branches)
        return CacheMiss("differs" if shared or position else "new", position + shared)

    def forget(self) -> None:
        """The cache was emptied."""
        self._branches.clear()


def _num_shared(block: array[int], other: array[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(block, other, strict=True)) if a != b), len(block))
