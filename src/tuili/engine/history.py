"""What penalties read: the distinct ids of one sequence, and how often each occurs in its output.

Kept up to date token by token, so that a step copies two arrays instead of counting a whole context.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from typing import NamedTuple

import numpy as np

from tuili.backend import Int32


class SeenTokens(NamedTuple):
    """What one row reads."""

    ids: Int32  # [N] distinct
    counts: Int32  # [N] how often each occurs in the output


class TokenHistory:
    """Distinct ids in order of first use; an id seen only in the prompt counts 0."""

    __slots__ = ("_counts", "_ids", "_index")

    def __init__(self, prompt_token_ids: ListLike[int]) -> None:
        distinct = list(dict.fromkeys(prompt_token_ids))
        self._index = {token_id: i for i, token_id in enumerate(distinct)}
        self._ids = np.array(distinct, dtype=np.int32)
        self._counts = np.zeros(len(distinct), dtype=np.int32)

    @property
    def seen(self) -> SeenTokens:
        """Views, valid until the next add."""
        return SeenTokens(self._ids[: len(self._index)], self._counts[: len(self._index)])

    def seen_along(self, draft: ListLike[int]) -> list[SeenTokens]:
        """What is seen now, and what would be after each token of `draft`."""
        if not draft:
            return [self.seen]
        ahead = self.copy()
        found = [self.seen]
        for token_id in draft:
            ahead.add(token_id)
            found.append(SeenTokens(*(array.copy() for array in ahead.seen)))
        return found

    def add(self, token_id: int) -> None:
        """Counts one more output token."""
        i = self._index.setdefault(token_id, len(self._index))
        if i == len(self._ids):
            self._grow()
        self._ids[i] = token_id
        self._counts[i] += 1

    def copy(self) -> TokenHistory:
        """An equal history that goes its own way."""
        twin = TokenHistory.__new__(TokenHistory)
        twin._index = dict(self._index)
        twin._ids = self._ids.copy()
        twin._counts = self._counts.copy()
        return twin

    def _grow(self) -> None:
        room = np.zeros(max(16, len(self._ids)), dtype=np.int32)
        self._ids = np.concatenate((self._ids, room))
        self._counts = np.concatenate((self._counts, room))
