"""The sampled rows of a sequence: what its next token, or the one after a draft, is chosen by."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

import numpy as np

from tuili.engine.history import SeenTokens
from tuili.engine.sampling import Bias, SampleRow, row_sampling, with_bans
from tuili.engine.sequence import Sequence
from tuili.types import SamplingParams, TokenRequest

_GREEDY = row_sampling(
    TokenRequest(request_id="", prompt_token_ids=(), sampling=SamplingParams(temperature=0.0), seed=0), frozenset(), 0
)


def raw_row(index: int, position: int) -> SampleRow:
    """A row whose choice is made from its raw logits, outside of the step."""
    return SampleRow(_GREEDY, index, position)


def sample_row(
    sequence: Sequence, index: int, position: int, ahead: ListLike[int] = (), seen: SeenTokens | None = None
) -> SampleRow:
    """The row of answer `index` at `position`, behind the tokens `ahead` of a draft.

    seen is what penalties read then; by default what they read now.
    """
    sampling = sequence.sampling
    if seen is None and sequence.history is not None:
        seen = sequence.history.seen
    dry = None
    if sampling.dry is not None:
        last_n = sampling.dry.last_n
        start = 0 if last_n < 0 else max(sequence.num_tokens + len(ahead) - last_n, 0)
        dry = sampling.dry.penalties([*sequence.token_ids[start:], *ahead])
    return SampleRow(
        sampling, index, position, seen, _bias(sequence, ahead), dry, sequence.mirostat_mu, sampling.allowed
    )


def _bias(sequence: Sequence, ahead: ListLike[int]) -> Bias | None:
    bias = sequence.bias(len(ahead))
    words, allowed = sequence.sampling.words, sequence.sampling.allowed_ids
    if words is None:
        return bias
    start = max(sequence.num_prompt_tokens, sequence.num_tokens - words.span)
    banned = words.banned([*sequence.token_ids[start:], *ahead])
    if not banned:
        return bias
    both = with_bans(bias, banned)
    if allowed is not None and allowed.issubset(both.ids[np.isneginf(both.values)].tolist()):
        return bias  # something must be chosen
    return both
