"""What penalties read: the distinct ids of one sequence, and how often each counts.

Kept up to date token by token, so that a step copies two arrays instead of counting a whole context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as ListLike
from typing import NamedTuple

import numpy as np

from tuili.backend import Int32


class SeenTokens(NamedTuple):
    """What one row reads."""

    ids: Int32  # [N] distinct
    counts: Int32  # [N] what frequency and presence penalties count


class TokenHistory:
    """Distinct ids in no particular order.

    Of the whole text (last_n -1) an id's count is how often it is in the output; an id seen only in the prompt
    counts 0. Of the last `last_n` tokens, prompt or output, it is how often it is among these.
    """

    __slots__ = ("_counts", "_ids", "_index", "_last_n", "_window")

    def __init__(self, prompt_token_ids: ListLike[int], last_n: int = -1) -> None:
        self._last_n = last_n
        self._window: deque[int] | None = None if last_n < 0 else deque()
        distinct = list(dict.fromkeys(prompt_token_ids)) if last_n < 0 else []
        self._index = {token_id: i for i, token_id in enumerate(distinct)}
        self._ids = np.array(distinct, dtype=np.int32)
        self._counts = np.zeros(len(distinct), dtype=np.int32)
        for token_id in prompt_token_ids[max(len(prompt_token_ids) - last_n, 0) :] if last_n > 0 else ():
            self.add(token_id)

    @property
    def seen(self) -> SeenTokens:
        """Views, valid until the next add."""
        return SeenTokens(self._ids[: len(self._index)], self._counts[: len(self._index)])

    @property
    def awaiting(self) -> SeenTokens:
        """What will be seen once a token is there that is still to be chosen: its id is -1, and it counts 0 here."""
        ids, counts = self.seen
        if self._window is not None and len(self._window) == self._last_n:
            oldest = self._index[self._window[0]]
            counts = counts.copy()
            counts[oldest] -= 1
            if not counts[oldest]:
                ids, counts = np.delete(ids, oldest), np.delete(counts, oldest)
        return SeenTokens(np.append(ids, np.int32(-1)), np.append(counts, np.int32(0)))

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
        """Counts one more token; what falls out of the window counts no more."""
        i = self._index.setdefault(token_id, len(self._index))
        if i == len(self._ids):
            self._grow()
        self._ids[i] = token_id
        self._counts[i] += 1
        if self._window is not None:
            self._window.append(token_id)
            if len(self._window) > self._last_n:
                self._drop(self._window.popleft())

    def copy(self) -> TokenHistory:
        """An equal history that goes its own way."""
        twin = TokenHistory.__new__(TokenHistory)
        twin._last_n = self._last_n
        twin._window = None if self._window is None else self._window.copy()
        twin._index = dict(self._index)
        twin._ids = self._ids.copy()
        twin._counts = self._counts.copy()
        return twin

    def _drop(self, token_id: int) -> None:
        """Counts one token less; the last id takes the place of one that is gone."""
        i, last = self._index[token_id], len(self._index) - 1
        self._counts[i] -= 1
        if self._counts[i]:
            return
        moved = int(self._ids[last])
        self._ids[i], self._counts[i] = moved, self._counts[last]
        self._counts[last] = 0
        self._index[moved] = i
        del self._index[token_id]

    def _grow(self) -> None:
        room = np.zeros(max(16, len(self._ids)), dtype=np.int32)
        self._ids = np.concatenate((self._ids, room))
        self._counts = np.concatenate((self._counts, room))
