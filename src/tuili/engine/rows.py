"""The sampled rows of a sequence: what its next token, or the one after a draft, is chosen by."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from itertools import repeat

import numpy as np

from tuili.backend import CARRIED_STATE
from tuili.engine.sampling.arrays import Bias, SampleRow, row_sampling, with_bans
from tuili.engine.sampling.history import SeenTokens, TokenHistory
from tuili.engine.sequence import Sequence
from tuili.types import SamplingParams, TokenRequest

_GREEDY = row_sampling(
    TokenRequest(request_id="", prompt_token_ids=(), sampling=SamplingParams(temperature=0.0), seed=0), frozenset(), 0
)


def raw_row(index: int, position: int) -> SampleRow:
    """A row whose choice is made from its raw logits, outside of the step."""
    return SampleRow(_GREEDY, index, position)


def sample_rows(sequence: Sequence, index: int, position: int, draft: ListLike[int] = ()) -> list[SampleRow]:
    """The row of answer `index` at `position`, and the one behind each token of a draft."""
    sampling = sequence.sampling
    histories = repeat(None) if sequence.history is None else _histories(sequence, sequence.history, draft)
    is_awaited = sequence.num_awaited and sampling.carries_state
    state = CARRIED_STATE if is_awaited else sequence.sampler_state
    dries = repeat(None) if sequence.dry_runs is None else sequence.dry_runs.along(draft)
    return [
        SampleRow(
            sampling,
            index,
            position + i,
            seen,
            _bias(sequence, draft[:i]),
            dry,
            state,
            sampling.allowed,
        )
        for i, seen, dry in zip(range(len(draft) + 1), histories, dries, strict=False)
    ]


def _histories(sequence: Sequence, history: TokenHistory, draft: ListLike[int]) -> list[SeenTokens]:
    return [history.awaiting] if sequence.num_awaited else history.seen_along(draft)


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
