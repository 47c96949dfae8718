"""What a step takes, learned from those that ran. Knows numbers of tokens and seconds; no sequences.

    level * (t + d * decodes + sum over runs of prompts of (a * tokens + b * position + c * tokens * position))

where the position is the run's middle. b: what lies before a run is read once, however short it is; c: each of its
tokens attends to all of that. No factor is negative. The level follows the machine's moods within tens of steps, and
the factors, by least squares over relative errors, what steps are made of: sizes that ran long ago still count, so
that one that never ran is not guessed from two neighbours that were disturbed. What a decode takes is seen only
where sizes differ; until then it is taken for a little more than a prompt's token, since it passes the head as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as ListLike

import numpy as np
from numpy.typing import NDArray

PromptSpan = tuple[int, int]  # first token and number of tokens

_NUM_FACTORS = 5
_SHORT_MEMORY, _LONG_MEMORY = 10, 500  # steps; the first ones, with cold caches, are soon forgotten
_MAX_RISE = 2.0  # by which one step may exceed what was expected of it: disturbances only ever add time
_FALL, _RISE = 0.1, 0.05  # shares of an error that the level takes
_DECODE_TOKENS = 1.25  # a decode's seconds in a prompt's tokens
# What is guessed, in units of what a token takes: how far t, d - 1.25 a, b and c are from 0.
_GUESSES = np.array([(1, 0, 0, 0, 0), (0, 1, -_DECODE_TOKENS, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)])
_GUESSED = np.array([16.0, 0.7, 6e-3, 2e-3])
_FADES = np.array([1.0, 0.0, 1.0, 1.0])  # the guess of d stays: weighed as two steps, it yields to a few of other sizes
_RIDGE = 1e-9
_MAX_UNREAD = 64
_MAX_TOKENS = 10**9  # where a token takes nothing that could be seen


class StepModel:
    """Observe steps; ask for seconds, and for tokens that fit into seconds."""

    def __init__(self) -> None:
        self._level = 1.0
        self._factors = [0.0] * _NUM_FACTORS  # t, d, a, b, c
        self._alone = _Moments()
        self._mixed: NDArray[np.float64] = np.zeros((_NUM_FACTORS, _NUM_FACTORS + 1))  # products, and with seconds
        self._num_alone = self._num_mixed = 0
        self._token_s = 0.0  # what a token takes, roughly
        self._guess_weight = 1.0  # in steps, of those that fade
        self._unread: list[tuple[int, ListLike[PromptSpan], float]] = []  # steps, until somebody asks

    def observe(self, num_decodes: int, prompts: ListLike[PromptSpan], seconds: float) -> None:
        """Takes note of a step; after the first ones, what follows is found out when seconds are asked for."""
        self._unread.append((num_decodes, prompts, seconds))
        if len(self._unread) >= _MAX_UNREAD or self._num_alone + self._num_mixed < _SHORT_MEMORY:
            self._read()

    def _read(self) -> None:
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        for step in unread:
            self._learn(*step)
            if self._num_alone + self._num_mixed < _SHORT_MEMORY:
                self._solve()
        self._solve()

    def _learn(self, num_decodes: int, prompts: ListLike[PromptSpan], seconds: float) -> None:
        found = max(seconds, 1e-9) / self._level
        if self._num_alone + self._num_mixed:
            expected = self._expected(num_decodes, prompts)
            found = min(found, _MAX_RISE * expected)
            error = max(math.log(found / expected), -0.5)
            self._level *= math.exp(error * (_FALL if error < 0 else _RISE))
            self._level **= 1 - 1 / _LONG_MEMORY  # what lasts is the factors': else both drift apart without end
        else:
            self._token_s = found / (num_decodes + sum(size for _, size in prompts))
        if prompts:
            self._num_mixed += 1
            kept = _kept(self._num_mixed)
            row = np.array([1.0, num_decodes, *_features(prompts)]) / found
            self._mixed *= kept
            self._mixed += np.outer(row, [*row, 1.0])
        else:
            self._num_alone += 1
            kept = _kept(self._num_alone)
            self._alone.add(num_decodes, found, kept)
        self._guess_weight *= kept

    def seconds(self, num_decodes: int, prompts: ListLike[PromptSpan] = ()) -> float:
        """What a step takes."""
        self._read()
        return self._level * self._expected(num_decodes, prompts)

    def decode_units(self, num_decodes: int) -> float:
        """What a step of decodes takes, for comparison with others: without the level, and some steps ago."""
        return max(self._factors[0] + self._factors[1] * num_decodes, 1e-9)

    def _expected(self, num_decodes: int, prompts: ListLike[PromptSpan]) -> float:
        t, d, a, b, c = self._factors
        tokens, positions, products = _features(prompts)
        return max(t + d * num_decodes + a * tokens + b * positions + c * products, 1e-9)

    def added(self, start: int, size: int) -> float:
        """What a run of `size` tokens from `start` on adds to a step."""
        self._read()
        _, _, a, b, c = self._factors
        tokens, positions, products = _features([(start, size)])
        return self._level * (a * tokens + b * positions + c * products)

    def num_tokens(self, start: int, seconds: float) -> int:
        """How many tokens from `start` on add no more than `seconds`."""
        self._read()
        _, _, a, b, c = self._factors
        left = seconds / self._level - b * start
        if left <= 0:
            return 0
        linear = a + b / 2 + c * start
        each = (linear + math.sqrt(linear * linear + 2 * c * left)) / 2
        return int(min(left / each, _MAX_TOKENS)) if each else _MAX_TOKENS

    def _solve(self) -> None:
        """The least squares without the factors that would be negative."""
        moments = self._mixed.copy()
        moments[:2, [0, 1, -1]] += self._alone.products()
        guesses = _GUESSES / (_GUESSED * self._token_s)[:, None]
        weights = self._guess_weight**_FADES
        matrix = moments[:, :-1] + (weights * guesses.T) @ guesses
        scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-30))  # so that all factors are of like size
        matrix = matrix * np.outer(scale, scale) + _RIDGE * np.eye(_NUM_FACTORS)
        target = moments[:, -1] * scale
        kept = list(range(_NUM_FACTORS))
        found = np.zeros(_NUM_FACTORS)
        while kept:
            found[:] = 0.0
            found[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], target[kept])
            if found.min() >= 0:
                break
            kept.remove(int(found.argmin()))
        self._factors = (found * scale).tolist()
        self._token_s = max(*self._factors[1:3], 1e-9)


class _Moments:
    """Of steps of decodes alone, which are many and short: in plain numbers."""

    def __init__(self) -> None:
        self._weight = self._rows = self._squares = self._seconds = self._row_seconds = 0.0

    def add(self, num_rows: int, seconds: float, kept: float) -> None:
        weight = 1 / (seconds * seconds)
        self._weight = kept * self._weight + weight
        self._rows = kept * self._rows + weight * num_rows
        self._squares = kept * self._squares + weight * num_rows * num_rows
        self._seconds = kept * self._seconds + weight * seconds
        self._row_seconds = kept * self._row_seconds + weight * num_rows * seconds

    def products(self) -> list[list[float]]:
        return [[self._weight, self._rows, self._seconds], [self._rows, self._squares, self._row_seconds]]


def _features(prompts: ListLike[PromptSpan]) -> tuple[float, float, float]:
    tokens = positions = products = 0.0
    for start, size in prompts:
        position = start + size / 2
        tokens += size
        positions += position
        products += size * position
    return tokens, positions, products


def _kept(count: int) -> float:
    """Of what is known, when one more step comes."""
    return 1 - 1 / min(max(count / 2, _SHORT_MEMORY), _LONG_MEMORY)
