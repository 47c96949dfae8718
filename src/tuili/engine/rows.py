"""The sampled rows of a sequence: what its next token, or the one after a draft, is chosen by."""

from __future__ import annotations

from collections.abc import Sequence as ListLike

import numpy as np

from tuili.engine.history import SeenTokens
from tuili.engine.sampling import Bias, SampleRow, row_sampling, with_bans
from tuili.engine.sequence import Sequence
from tuili.engine.token_rules import completed_words
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
    dry = None if sampling.dry is None else sampling.dry.penalties([*sequence.token_ids, *ahead])
    return SampleRow(
        sampling, index, position, seen, _bias(sequence, ahead), dry, sequence.mirostat_mu, sampling.allowed
    )


def _bias(sequence: Sequence, ahead: ListLike[int]) -> Bias | None:
    bias = sequence.bias(len(ahead))
    words = sequence.sampling.words
    if not words:
        return bias
    output = [*sequence.token_ids[sequence.num_prompt_tokens :], *ahead]
    banned = completed_words(words, output)
    allowed = sequence.request.sampling.allowed_token_ids
    if not banned:
        return bias
    both = with_bans(bias, banned)
    if allowed is not None and set(allowed).issubset(both.ids[np.isneginf(both.values)].tolist()):
        return bias  # something must be chosen
    return both
