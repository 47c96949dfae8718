"""Chooses a token for each row of logits, on the device: greedy rows, and draws with samplers in any order."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuili.backend import Bool, Int32, SamplingArrays, UInt32
from tuili.backends.torch.draw import draw_tokens
from tuili.backends.torch.draw_plan import DrawPart, upload_parts
from tuili.backends.torch.draw_samplers import with_carried, with_states
from tuili.backends.torch.step import Uploader


class Carried(NamedTuple):
    """What rows go on from, as far as the step before has left it on the device."""

    token_ids: Tensor  # int32 [n] that the rows were computed from
    states: Tensor  # float32 [n] of their samplers

    def rows(self, rows: slice | Tensor) -> Carried:
        return Carried(self.token_ids[rows], self.states[rows])


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
    """The rows of a step whose token is more than the largest logit, by their tile's first row."""

    parts: Mapping[int, ListLike[DrawPart]]


def plan_draws(rules: RowRules, tile_rows: int, vocab_size: int, uploader: Uploader, device: torch.device) -> StepDraws:
    """For logits that come `tile_rows` rows at a time. One copy to the device where a row is drawn there."""
    rows = np.flatnonzero(rules.drawn_rows())
    if not len(rows):
        return StepDraws({})
    if device.type == "mps":  # which has no float64: these rows are drawn on the CPU
        uploader = Uploader(torch.device("cpu"))
    return StepDraws(upload_parts(rules.sampling, rules.allow_mask, rows, tile_rows, vocab_size, uploader))


def choose_tokens(
    logits: Tensor, first: int, draws: StepDraws, targets: Tensor, carried: Carried | None = None
) -> Chosen:
    """Tokens for rows [first, first + n) of a step, a tile of the plan, whose logits are float32 [n, vocab].

    targets int32 [n] are taken where they are >= 0; -1 is chosen where the logits hold no finite maximum. carried:
    what stands for -1 in the rows' histories, and for CARRIED_STATE.
    """
    top, best = logits.max(-1)
    is_sound = top.isfinite()
    chosen = best.int()
    states = torch.full_like(top, torch.nan)
    for part in draws.parts.get(first, ()):
        rows = part.rows.long().to(logits.device)
        if part.counts_carried or part.has_carried:
            assert carried is not None
            part = _going_on(part, carried.rows(rows))
        token_ids, after = draw_tokens(logits.index_select(0, rows).to(part.rows.device), part)
        chosen.index_copy_(0, rows, token_ids.to(logits.device))
        if after is not None:
            states.index_copy_(0, rows, after.to(logits.device))
    chosen = torch.where(targets >= 0, targets, torch.where(is_sound, chosen, -1))
    return Chosen(chosen, torch.where(is_sound, states, torch.nan))


def _going_on(part: DrawPart, carried: Carried) -> DrawPart:
    """With what its rows go on from."""
    device = part.rows.device
    if part.counts_carried:
        part = with_carried(part, carried.token_ids.to(device))
    return with_states(part, carried.states.to(device)) if part.has_carried else part
