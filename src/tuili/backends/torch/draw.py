"""A token for each row of a part: bias and mask, its samplers in their order, the draw. Waits for nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tuili.backends.torch.draw_plan import DrawPart
from tuili.backends.torch.draw_samplers import (
    Candidates,
    add_bias,
    allowed,
    carries_state,
    next_states,
    run_samplers,
    running_sums,
)


def draw_tokens(logits: Tensor, part: DrawPart) -> tuple[Tensor, Tensor | None]:
    """From float32 [n, vocab], which is overwritten: int32 [n], 0 where nothing is allowed, and float32 [n] what the
    last step carries on; None where it carries nothing in any row, NaN in greedy and empty ones.
    """
    add_bias(logits, part)
    if part.allow_mask is not None:
        logits = allowed(logits, part.allow_mask)
    is_empty = logits.amax(-1) == -math.inf
    candidates = Candidates(logits, logits.shape[-1])
    run_samplers(candidates, part)
    candidates.ascending()
    is_greedy = part.columns["is_greedy"] != 0
    at = candidates.logits.argmax(-1, keepdim=True)
    if part.num_drawn:
        at = torch.where(is_greedy[:, None], at, _drawn(candidates.weights, part.columns["u"][:, None]))
    ids = at if candidates.ids is None else candidates.ids.gather(-1, at)
    token_ids = torch.where(is_empty, 0, ids[:, 0]).int()
    if not carries_state(part):
        return token_ids, None
    return token_ids, torch.where(is_greedy | is_empty, torch.nan, next_states(candidates, part, at))


def _drawn(weights: Tensor, u: Tensor) -> Tensor:
    """int64 [n, 1]: the first place whose running sum exceeds u times the total."""
    sums = running_sums(weights)
    total = sums[:, -1:].contiguous()
    last = torch.searchsorted(sums, total)  # u * total may round up to the total itself
    return torch.searchsorted(sums, u * total, right=True).minimum(last).clamp(max=weights.shape[-1] - 1)
