"""DRY ("don't repeat yourself"): penalties for tokens that would continue a repetition.

A rule belongs to a request; its runs follow one sequence token by token, so that no text makes a row dear: what a
token costs is a pass over the tokens looked at, whatever they are. Knows token ids only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tuili.backend import Bool, Float32, Int32

_LOG_FLOAT_MAX = 88.7228391
MAX_DRY = 1e30  # far above every logit, and finite after any temperature
_SPARE = 64  # tokens of room behind a text
_END = -1  # of a tail: a key that is no token
Tails = tuple[tuple[int, ...], ...]
Node = dict[int, "Node"]  # what may follow, by the next token


class Penalized(NamedTuple):
    """What is subtracted from some logits of a row."""

    ids: Int32  # [D] distinct
    values: Float32  # [D]


class Breakers(NamedTuple):
    """Sequence breakers as tokens: heads, and what must follow them."""

    heads: Mapping[int, Node]
    is_whole: Bool  # [vocab] a token that is, or contains, a breaker
    span: int  # the most tokens that follow a head

    @staticmethod
    def of(breakers: Mapping[int, Tails], vocab_size: int) -> Breakers:
        """breakers gives for each token that may begin a sequence breaker what must follow it."""
        is_whole = np.zeros(vocab_size, np.bool_)
        is_whole[[head for head, tails in breakers.items() if () in tails]] = True
        span = max((len(tail) for tails in breakers.values() for tail in tails), default=0)
        return Breakers({head: _tree(tails) for head, tails in breakers.items()}, is_whole, span)

    def last_in(self, tokens: list[int]) -> tuple[int, int]:
        """The places of the last head whose breaker is there, and of the end of its longest; -1 where none is."""
        for place in range(len(tokens) - 1, -1, -1):
            if tokens[place] in self.heads and (ends := self._ends(tokens, place)):
                return place, ends[-1]
        return -1, -1

    def last_that_ends(self, tokens: list[int]) -> int:
        """The place of the last head whose breaker ends with the last token; -1 where none does."""
        for place in range(len(tokens) - 1, -1, -1):
            if tokens[place] in self.heads and len(tokens) - 1 in self._ends(tokens, place):
                return place
        return -1

    def _ends(self, tokens: list[int], place: int) -> list[int]:
        """Where the breakers end whose head is at `place`, ascending."""
        ends: list[int] = []
        node: Node | None = self.heads[tokens[place]]
        while node is not None:
            if _END in node:
                ends.append(place)
            place += 1
            node = node.get(tokens[place]) if place < len(tokens) else None
        return ends


def _tree(tails: Tails) -> Node:
    root: Node = {}
    for tail in tails:
        node = root
        for token_id in tail:
            node = node.setdefault(token_id, {})
        node[_END] = {}
    return root


@dataclass(frozen=True, slots=True)
class Dry:
    """One request's rule."""

    multiplier: float
    base: float
    allowed_length: int
    last_n: int  # tokens looked at; -1: all
    breakers: Breakers

    def penalty(self, length: int) -> float:
        """For a token that would make a repetition of `length` tokens one longer."""
        exponent = length - self.allowed_length
        if self.base > 1.000001:
            exponent = min(exponent, int(_LOG_FLOAT_MAX / math.log(self.base)))
        return float(min(self.multiplier * self.base**exponent, MAX_DRY))


class DryRuns:
    """How long the repetitions are that end with a text, at each earlier place where its end occurs.

    A run at place j is the longest suffix of the text that also ends at j. Of the breakers only the last counts: the
    one whose head comes last, with the longest tail that follows it.
    """

    __slots__ = ("_break_end", "_break_head", "_lengths", "_rule", "_size", "_tokens")

    def __init__(self, rule: Dry, token_ids: ListLike[int]) -> None:
        self._rule = rule
        window = list(token_ids if rule.last_n < 0 else token_ids[max(len(token_ids) - rule.last_n, 0) :])
        self._size = len(window)
        self._tokens = np.zeros(self._size + _SPARE, np.int32)
        self._tokens[: self._size] = window
        self._lengths = np.zeros(self._size + _SPARE, np.int32)
        self._lengths[: self._size] = _runs(window)
        self._break_head, self._break_end = rule.breakers.last_in(window)

    @property
    def _start(self) -> int:
        """Of the tokens looked at."""
        return 0 if self._rule.last_n < 0 else max(self._size - self._rule.last_n, 0)

    def add(self, token_id: int) -> None:
        """The text goes on."""
        if self._size == len(self._tokens):
            self._make_room()
        start, end = self._start, self._size
        grown = np.where(self._tokens[start + 1 : end] == token_id, self._lengths[start : max(end - 1, start)] + 1, 0)
        self._lengths[start + 1 : end] = grown
        self._lengths[start : start + 1] = self._tokens[start : start + 1] == token_id
        self._lengths[end] = 0
        self._tokens[end] = token_id
        self._size += 1
        first = max(end - self._rule.breakers.span, self._start, self._break_head)
        head = self._rule.breakers.last_that_ends(self._tokens[first : self._size].tolist())
        if head >= 0:
            self._break_head, self._break_end = first + head, end

    def penalties(self) -> Penalized | None:
        """For the text's next token. The longest run that ends before the token counts."""
        rule, start, last = self._rule, self._start, self._size - 1
        lengths = self._lengths[start:last]
        ends = np.flatnonzero(lengths >= rule.allowed_length)
        if not len(ends):
            return None
        followers = self._tokens[start + 1 + ends]
        limit = last - self._break_end if self._break_head >= start else last
        bounded = np.minimum(np.minimum(lengths[ends], ends + 1), limit)
        kept = (bounded >= rule.allowed_length) & ~rule.breakers.is_whole[followers]
        if not kept.any():
            return None
        return self._penalized(followers[kept], bounded[kept])

    def along(self, draft: ListLike[int]) -> list[Penalized | None]:
        """The penalties now, and after each token of `draft`."""
        found = [self.penalties()]
        ahead = self.copy() if draft else self
        for token_id in draft:
            ahead.add(token_id)
            found.append(ahead.penalties())
        return found

    def copy(self) -> DryRuns:
        """Equal runs that go their own way."""
        twin = DryRuns.__new__(DryRuns)
        for name in DryRuns.__slots__:
            setattr(twin, name, getattr(self, name))
        twin._tokens, twin._lengths = self._tokens.copy(), self._lengths.copy()
        return twin

    def _penalized(self, followers: Int32, lengths: Int32) -> Penalized:
        """Each follower's longest run, as what to subtract."""
        order = np.lexsort((lengths, followers))
        ids = followers[order]
        is_longest = np.append(ids[1:] != ids[:-1], True)
        distinct, which = np.unique(lengths[order][is_longest], return_inverse=True)
        values = np.array([self._rule.penalty(length) for length in distinct.tolist()], np.float32)
        return Penalized(ids[is_longest], values[which])

    def _make_room(self) -> None:
        """Behind what is looked at; what is not goes."""
        start = self._start
        room = np.zeros(self._size - start + _SPARE, np.int32)
        self._tokens = np.concatenate((self._tokens[start : self._size], room))
        self._lengths = np.concatenate((self._lengths[start : self._size], room))
        self._break_head, self._break_end = max(self._break_head - start, -1), max(self._break_end - start, -1)
        self._size -= start


def _runs(tokens: list[int]) -> list[int]:
    """For each place how many tokens up to there also end the text; 0 for the last.

    The Z-function of the text read backwards (Gusfield, 1997): time is linear in the text.
    """
    tokens = tokens[::-1]
    size, left, right = len(tokens), 0, 0
    found = [0] * size
    for i in range(1, size):
        length = min(right - i, found[i - left]) if i < right else 0
        while i + length < size and tokens[length] == tokens[i + length]:
            length += 1
        found[i] = length
        if i + length > right:
            left, right = i, i + length
    return found[::-1]
