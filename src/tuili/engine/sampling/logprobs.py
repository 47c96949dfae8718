"""Reads a step's result back into log probabilities by token id."""

from __future__ import annotations

from tuili.backend import StepResult
from tuili.types import Logprob, TokenLogprobs


def token_logprobs(result: StepResult, row: int, count: int) -> TokenLogprobs:
    """The row's token first, then the `count` best.

    Ranks of the best follow from their order, equals sharing the lowest.
    """
    found: TokenLogprobs = {int(result.token_ids[row]): Logprob(float(result.logprobs[row]), int(result.ranks[row]))}
    rank, previous = 0, None
    best = zip(result.top_ids[row, :count].tolist(), result.top_logprobs[row, :count].tolist(), strict=True)
    for i, (token_id, logprob) in enumerate(best, start=1):
        rank, previous = (rank if logprob == previous else i), logprob
        found.setdefault(token_id, Logprob(logprob, rank))
    return found
