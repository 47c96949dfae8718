"""Chooses a token for each row of logits. Greedy rows never leave the device; the others are chosen on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuili.backend import Bool, Int32, SamplingArrays, UInt32
from tuili.backends.reference.sampling import choose_row


class Chosen(NamedTuple):
    """On the device."""

    token_ids: Tensor  # int32 [R]
    sampler_state: Tensor  # float32 [R]


@dataclass(frozen=True, slots=True)
class RowRules:
    """How the rows of a step are chosen: what the host knows of them."""

    sampling: SamplingArrays
    allow_mask: UInt32 | None
    targets: Int32  # [R]

    def drawn_rows(self) -> Bool:
        """[R] rows whose token is more than the largest logit."""
        s = self.sampling
        is_ruled = np.full(len(self.targets), self.allow_mask is not None)
        for starts in (s.history_start, s.bias_start, s.chain_start):
            is_ruled |= np.diff(starts) > 0
        return (is_ruled | (s.temperature > 0)) & (self.targets < 0)


def choose_tokens(logits: Tensor, first: int, rules: RowRules, targets: Tensor) -> Chosen:
    """Tokens for rows [first, first + n) of a step, whose logits are float32 [n, vocab].

    targets int32 [n] are taken where they are >= 0; -1 is chosen where the logits hold no finite maximum.
    """
    top, best = logits.max(-1)
    is_sound = top.isfinite()
    chosen = torch.where(is_sound, best.int(), -1)
    states = torch.full_like(top, torch.nan)
    drawn = np.flatnonzero(rules.drawn_rows()[first : first + len(logits)])
    if len(drawn):
        _draw(logits, first, rules, drawn, Chosen(chosen, states))
    return Chosen(torch.where(targets >= 0, targets, chosen), states)


def _draw(logits: Tensor, first: int, rules: RowRules, rows: np.ndarray, into: Chosen) -> None:
    """By the definition, on the host; waits for the device."""
    at = torch.from_numpy(rows).to(logits.device)
    for r, row in zip(rows.tolist(), logits[at].cpu().numpy(), strict=True):
        if np.isfinite(row.max()):
            choice = choose_row(row, rules.sampling, first + r, rules.allow_mask)
            into.token_ids[r], into.sampler_state[r] = choice.token_id, choice.sampler_state
