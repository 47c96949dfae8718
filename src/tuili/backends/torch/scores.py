"""What raw logits say about chosen ids: logprobs, ranks and the best ids beside them. Knows logits only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LOW_BITS = (1 << 32) - 1


class Scores(NamedTuple):
    """Of R rows; what StepResult says of the fields of the same names."""

    logprobs: Tensor  # float32 [R]
    ranks: Tensor  # int32 [R]
    top_ids: Tensor  # int32 [R, K]
    top_logprobs: Tensor  # float32 [R, K]


def no_scores(num_rows: int, k: int, device: torch.device) -> Scores:
    return Scores(
        torch.full((num_rows,), torch.nan, dtype=torch.float32, device=device),
        torch.zeros(num_rows, dtype=torch.int32, device=device),
        torch.full((num_rows, k), -1, dtype=torch.int32, device=device),
        torch.full((num_rows, k), torch.nan, dtype=torch.float32, device=device),
    )


def score_tokens(logits: Tensor, token_ids: Tensor, num_logprobs: Tensor, k: int) -> Scores:
    """logits float32 [R, vocab]; token_ids, num_logprobs int32 [R]: nothing is said where one of them is -1."""
    is_wanted = (num_logprobs >= 0) & (token_ids >= 0)
    ids = token_ids.clamp(min=0).long()[:, None]
    own = logits.gather(-1, ids)
    total = _log_sum_exp(logits)
    top_ids = largest(logits, k)
    is_shown = is_wanted[:, None] & (torch.arange(k, device=logits.device) < num_logprobs[:, None])
    return Scores(
        torch.where(is_wanted, (own - total).float()[:, 0], torch.nan),
        torch.where(is_wanted, 1 + (logits > own).sum(-1), 0).int(),
        torch.where(is_shown, top_ids, -1).int(),
        torch.where(is_shown, (logits.gather(-1, top_ids) - total).float(), torch.nan),
    )


def _log_sum_exp(logits: Tensor) -> Tensor:
    """[R, 1] in float64 where the device has that."""
    wide = logits if logits.device.type == "mps" else logits.double()
    return wide.logsumexp(-1, keepdim=True)


def largest(values: Tensor, k: int) -> Tensor:
    """int64 [R, k]: indices of the k largest of each row, best first; of equals the lowest index."""
    bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # as integers in the order of the floats
    places = torch.arange(values.shape[-1], device=values.device)
    keys = (order << 32) | (_LOW_BITS - places)
    return _LOW_BITS - (keys.topk(k, -1).values & _LOW_BITS)
