"""What depends on token ids alone: bad words, and answers that go round in circles.

Pure functions of a sequence's tokens, so that they give the same along a draft as token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass

from tuili.engine.sampling.dry import Tails
from tuili.sampling_params import RepetitionDetectionParams


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
