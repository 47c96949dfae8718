"""What depends on token ids alone: DRY's penalties, bad words, and answers that go round in circles.

Pure functions of a sequence's tokens, so that they give the same along a draft as token by token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tuili.backend import Bool, Float32, Int32
from tuili.sampling_params import RepetitionDetectionParams

_LOG_FLOAT_MAX = 88.7228391
MAX_DRY = 1e30  # far above every logit, and finite after any temperature
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

    def penalties(self, token_ids: ListLike[int]) -> Penalized | None:
        """For prompt and output so far. The longest run that ends both here and before the token counts."""
        count = len(token_ids) if self.last_n < 0 else min(self.last_n, len(token_ids))
        if count <= self.allowed_length:
            return None
        tokens = np.array(token_ids[-count:], dtype=np.int32)
        limit = self._limit(tokens)
        if limit < self.allowed_length:
            return None
        longest: dict[int, int] = {}
        for end, length in _repeats(tokens, limit, self.allowed_length):
            follower = int(tokens[end + 1])
            longest[follower] = max(longest.get(follower, 0), length)
        found = {i: self._penalty(n) for i, n in longest.items() if () not in self.breakers.get(i, ())}
        if not found:
            return None
        return Penalized(np.array(list(found), np.int32), np.array(list(found.values()), np.float32))

    def _penalty(self, length: int) -> float:
        exponent = length - self.allowed_length
        if self.base > 1.000001:
            exponent = min(exponent, int(_LOG_FLOAT_MAX / math.log(self.base)))
        return float(min(self.multiplier * self.base**exponent, MAX_DRY))

    def _limit(self, tokens: Int32) -> int:
        """Tokens after the last sequence breaker: no repetition is longer."""
        size = len(tokens)
        for place in np.flatnonzero(self.is_head[tokens])[::-1].tolist():
            lengths = [
                len(tail)
                for tail in self.breakers[int(tokens[place])]
                if tuple(tokens[place + 1 : place + 1 + len(tail)].tolist()) == tail
            ]
            if lengths:
                return size - 1 - int(place) - max(lengths)
        return size


def _repeats(tokens: Int32, limit: int, least: int) -> Iterator[tuple[int, int]]:
    """Earlier ends of the runs that end the text, with their lengths from `least` to `limit`."""
    last = len(tokens) - 1
    ends = np.flatnonzero(tokens[:-1] == tokens[last])
    length = 1
    while len(ends) and length < limit:
        goes_on = (ends >= length) & (tokens[ends - length] == tokens[last - length])
        if length >= least:
            yield from ((end, length) for end in ends[~goes_on].tolist())
        ends, length = ends[goes_on], length + 1
    if length >= least:
        yield from ((end, length) for end in ends.tolist())


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
