"""What depends on token ids alone: DRY's penalties, bad words, and answers that go round in circles.

Pure functions of a sequence's tokens, so that they give the same along a draft as token by token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tuili.backend import Bool, Float32, Int32, Int64
from tuili.sampling_params import RepetitionDetectionParams

_LOG_FLOAT_MAX = 88.7228391
MAX_DRY = 1e30  # far above every logit, and finite after any temperature
_FEW = 32  # lengths of runs that are compared one by one
Tails = tuple[tuple[int, ...], ...]


class Penalized(NamedTuple):
    """What is subtracted from some logits of a row."""

    ids: Int32  # [D] distinct
    values: Float32  # [D]


@dataclass(frozen=True, slots=True)
class Dry:
    """One request's DRY ("don't repeat yourself"): penalizes tokens that would continue a repetition.

    breakers gives for each token that may begin a sequence breaker what must follow it.
    """

    multiplier: float
    base: float
    allowed_length: int
    last_n: int  # tokens looked at; -1: all
    breakers: Mapping[int, Tails]
    is_head: Bool  # [vocab] whether breakers has the id
    span: int  # the most tokens that follow a breaker's first

    def penalties(self, token_ids: ListLike[int]) -> Penalized | None:
        """For prompt and output so far. The longest run that ends both here and before the token counts."""
        count = len(token_ids) if self.last_n < 0 else min(self.last_n, len(token_ids))
        if count <= self.allowed_length:
            return None
        tokens = np.array(token_ids[-count:], dtype=np.int32)
        ends, lengths = _repeats(tokens)
        if not len(ends):
            return None
        limit = self._limit(tokens.tolist(), int(lengths.max()))
        longest: dict[int, int] = {}
        for follower, length in zip(tokens[ends + 1].tolist(), np.minimum(lengths, limit).tolist(), strict=True):
            if length >= max(self.allowed_length, longest.get(follower, 0)):
                longest[follower] = length
        found = {i: self._penalty(n) for i, n in longest.items() if () not in self.breakers.get(i, ())}
        if not found:
            return None
        return Penalized(np.array(list(found), np.int32), np.array(list(found.values()), np.float32))

    def _penalty(self, length: int) -> float:
        exponent = length - self.allowed_length
        if self.base > 1.000001:
            exponent = min(exponent, int(_LOG_FLOAT_MAX / math.log(self.base)))
        return float(min(self.multiplier * self.base**exponent, MAX_DRY))

    def _limit(self, tokens: list[int], longest: int) -> int:
        """Tokens after the last sequence breaker, as no repetition is longer; `longest` where there are more."""
        size = len(tokens)
        first = max(size - 1 - longest - self.span, 0)
        for place in (first + np.flatnonzero(self.is_head[tokens[first:]])[::-1]).tolist():
            lengths = [
                len(tail)
                for tail in self.breakers[tokens[place]]
                if not tail or (tail[0] in tokens[place + 1 : place + 2] and _is_at(tokens, place + 1, tail))
            ]
            if lengths:
                return min(size - 1 - int(place) - max(lengths), longest)
        return longest


def _is_at(tokens: list[int], start: int, tail: tuple[int, ...]) -> bool:
    return tuple(tokens[start : start + len(tail)]) == tail


def _repeats(tokens: Int32) -> tuple[Int64, Int64]:
    """Earlier ends of the runs that end the text too, and how long these are, in time linear in the text."""
    last = len(tokens) - 1
    ends = np.flatnonzero(tokens[:-1] == tokens[last])
    lengths = np.ones(len(ends), np.int64)
    going = np.arange(len(ends))
    for length in range(1, _FEW):
        at = ends[going]
        going = going[(at >= length) & (tokens[at - length] == tokens[last - length])]
        if not len(going):
            return ends, lengths
        lengths[going] += 1
    return ends, np.array(_common_prefixes(tokens[::-1].tolist()), np.int64)[last - ends]


def _common_prefixes(tokens: list[int]) -> list[int]:
    """The Z-function (Gusfield, 1997): how many tokens from each place on are those from the start on."""
    size, left, right = len(tokens), 0, 0
    found = [0] * size
    for i in range(1, size):
        length = min(right - i, found[i - left]) if i < right else 0
        while i + length < size and tokens[length] == tokens[i + length]:
            length += 1
        found[i] = length
        if i + length > right:
            left, right = i, i + length
    return found


@dataclass(frozen=True, slots=True)
class BadWords:
    """Words of two tokens or more that no output may hold, found by the last token but one."""

    by_last: Mapping[int, Tails]
    span: int  # tokens of the output that matter: the longest word's less one

    @staticmethod
    def of(words: ListLike[tuple[int, ...]]) -> BadWords | None:
        """None without words."""
        by_last: dict[int, Tails] = {}
        for word in words:
            by_last[word[-2]] = (*by_last.get(word[-2], ()), word)
        return BadWords(by_last, max(map(len, words)) - 1) if words else None

    def banned(self, output_ids: ListLike[int]) -> list[int]:
        """What may not come next; of the output, its last `span` tokens do."""
        return completed_words(self.by_last.get(output_ids[-1], ()), output_ids) if output_ids else []


def completed_words(words: ListLike[tuple[int, ...]], output_ids: ListLike[int]) -> list[int]:
    """The last tokens of those `words`, of two tokens or more, whose other tokens end the output."""
    size = len(output_ids)
    return [word[-1] for word in words if len(word) <= size + 1 and tuple(output_ids[1 - len(word) :]) == word[:-1]]


def goes_in_circles(output_ids: ListLike[int], rule: RepetitionDetectionParams) -> bool:
    """Whether the output ends in one pattern min_count times over."""
    size = len(output_ids)
    for length in range(max(rule.min_pattern_size, 1), rule.max_pattern_size + 1):
        span = length * rule.min_count
        if span > size:
            return False
        if output_ids[-1] == output_ids[-1 - length] and all(
            output_ids[i] == output_ids[i - length] for i in range(size - span + length, size)
        ):
            return True
    return False
