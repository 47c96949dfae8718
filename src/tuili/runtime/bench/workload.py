"""What is measured, and how figures are counted from the moments at which tokens came. Knows no engine.

Prefill is prompt tokens per second until the last sequence has its first token. Decode is counted only while
every sequence decodes: from the last first token to the first last token, so that neither prefill nor a
thinning tail is in it.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

FIRST_PLAIN_ID = 100  # lower ids are often control tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """`num_seqs` distinct random prompts of `prompt_len` tokens, `output_len` more after each one's first token."""

    num_seqs: int = 1
    prompt_len: int = 32
    output_len: int = 64

    @property
    def max_tokens(self) -> int:
        """Tokens each sequence produces: the first one belongs to prefill."""
        return self.output_len + 1

    def prompts(self, vocab_size: int, rng: random.Random) -> list[tuple[int, ...]]:
        """[num_seqs][prompt_len] token ids, new ones on each call."""
        low, high = min(FIRST_PLAIN_ID, vocab_size // 4), vocab_size - min(FIRST_PLAIN_ID, vocab_size // 4)
        return [tuple(rng.randrange(low, high) for _ in range(self.prompt_len)) for _ in range(self.num_seqs)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """When each token of each sequence came, in seconds since the requests were sent."""

    num_prompt_tokens: int  # of all sequences
    token_times_s: tuple[tuple[float, ...], ...]  # [num_seqs][tokens], ascending

    def first_token_times_s(self) -> list[float]:
        return [times[0] for times in self.token_times_s]

    def gaps_s(self) -> list[float]:
        """Time between neighbouring tokens of a sequence, of all sequences."""
        return [b - a for times in self.token_times_s for a, b in itertools.pairwise(times)]

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.num_prompt_tokens / max(self.first_token_times_s())

    @property
    def decode_tokens_per_s(self) -> float | None:
        """None where no moment has every sequence decoding."""
        start, end = max(self.first_token_times_s()), min(times[-1] for times in self.token_times_s)
        count = sum(start < time <= end for times in self.token_times_s for time in times)
        return count / (end - start) if count else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run of a workload; what a contender does not tell is None."""

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    trace: Trace | None = None

    @property
    def speed(self) -> float:
        """Decode where it was measured, else prefill."""
        return self.decode_tokens_per_s or self.prefill_tokens_per_s or 0.0

    @staticmethod
    def of(trace: Trace) -> Measurement:
        return Measurement(
            prefill_tokens_per_s=trace.prefill_tokens_per_s,
            decode_tokens_per_s=trace.decode_tokens_per_s,
            trace=trace,
        )


class Contender(Protocol):
    """Something that can run a workload: this engine or a peer."""

    @property
    def name(self) -> str: ...

    def measure(self, workload: Workload) -> Measurement:
        """Runs the workload once, on prompts not seen before. Raises BenchmarkError."""

    def close(self) -> None: ...


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of ours / theirs; a round's two runs were neighbours in time."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
