"""Chooses a token for each row of logits, on the device: greedy rows, and draws in the default order.

Rows whose chain has another order, or carries a state, are chosen on the host by the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuili.backend import Bool, Int32, Int64, SamplingArrays, UInt32
from tuili.backends.reference.sampling import choose_row
from tuili.backends.torch.draw import draw_tokens
from tuili.backends.torch.draw_plan import DrawPart, draw_rules, upload_parts
from tuili.backends.torch.step import Uploader


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


@dataclass(frozen=True, slots=True)
class StepDraws:
    """The rows of a step whose token is more than the largest logit, and where they are chosen."""

    rules: RowRules
    parts: Mapping[int, ListLike[DrawPart]]  # on the device, by their tile's first row
    host_rows: Int64


def plan_draws(rules: RowRules, tile_rows: int, vocab_size: int, uploader: Uploader, device: torch.device) -> StepDraws:
    """For logits that come `tile_rows` rows at a time. One copy to the device where a row is drawn there."""
    rows = np.flatnonzero(rules.drawn_rows())
    if not len(rows):
        return StepDraws(rules, {}, rows)
    described = draw_rules(rules.sampling, rules.allow_mask)
    is_here = described.in_order[rows] & (device.type != "mps")  # which has no float64
    parts = upload_parts(described, rows[is_here], tile_rows, vocab_size, uploader)
    return StepDraws(rules, parts, rows[~is_here])


def choose_tokens(logits: Tensor, first: int, draws: StepDraws, targets: Tensor) -> Chosen:
    """Tokens for rows [first, first + n) of a step, a tile of the plan, whose logits are float32 [n, vocab].

    targets int32 [n] are taken where they are >= 0; -1 is chosen where the logits hold no finite maximum.
    """
    top, best = logits.max(-1)
    is_sound = top.isfinite()
    chosen = best.int()
    states = torch.full_like(top, torch.nan)
    for part in draws.parts.get(first, ()):
        chosen.index_copy_(0, part.rows.long(), draw_tokens(logits.index_select(0, part.rows), part))
    mine = draws.host_rows[(draws.host_rows >= first) & (draws.host_rows < first + len(logits))]
    if len(mine):
        _choose_on_host(logits, first, draws.rules, mine - first, Chosen(chosen, states))
    return Chosen(torch.where(targets >= 0, targets, torch.where(is_sound, chosen, -1)), states)


def _choose_on_host(logits: Tensor, first: int, rules: RowRules, rows: Int64, into: Chosen) -> None:
    """By the definition; waits for the device."""
    at = torch.from_numpy(rows).to(logits.device)
    for r, row in zip(rows.tolist(), logits[at].cpu().numpy(), strict=True):
        if np.isfinite(row.max()):
            choice = choose_row(row, rules.sampling, first + r, rules.allow_mask)
            into.token_ids[r], into.sampler_state[r] = choice.token_id, choice.sampler_state
