"""The sampled rows of a step: logits a few rows at a time, choices, scores, and their way back. Knows no layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tuili.backend import Batch, Float32, Int64, StepResult
from tuili.backends.torch.devices import device_failure
from tuili.backends.torch.sampling import Carried, Chosen, RowRules, choose_tokens, plan_draws
from tuili.backends.torch.scores import Scores, no_scores, score_tokens
from tuili.backends.torch.step import Array, Download, StepInputs, Uploader
from tuili.backends.torch_sizes.footprint import TILE_LOGITS

_TILE_LOGITS = {"cpu": 1 << 23}  # logits that exist at one time


@dataclass(frozen=True, slots=True)
class RowResults:
    """On the device, of all R rows."""

    chosen: Chosen
    scores: Scores
    logits: Tensor | None  # float32 [W, vocab] of the rows that want them
    logit_rows: Int64 | None  # [W]
    hidden: Tensor | None  # float32 [R, hidden]


def run_rows(
    logits_of: Callable[[slice], Tensor],
    hidden: Tensor | None,
    batch: Batch,
    step: StepInputs,
    vocab_size: int,
    uploader: Uploader,
    carried: Carried,
) -> RowResults:
    """Chooses and scores the sampled rows by their raw logits, float32 [n, vocab] of some rows that follow each other.

    hidden [R, hidden]: their normed hidden states, where these are wanted. carried [R]: what rows go on from.
    """
    device, num_rows = step.targets.device, len(batch.targets)
    logit_rows = None if batch.want_logits is None else np.flatnonzero(batch.want_logits)
    k = min(vocab_size, int(batch.num_logprobs.max(initial=0)))
    size = max(1, _TILE_LOGITS.get(device.type, TILE_LOGITS) // vocab_size)
    rules = RowRules(batch.sampling, batch.allow_mask, batch.targets)
    draws = plan_draws(rules, size, vocab_size, uploader, device)
    chosen: list[Chosen] = []
    scores: list[Scores] = []
    kept: list[Tensor] = []
    for start in range(0, max(num_rows, 1), size):
        tile = slice(start, min(start + size, num_rows))
        logits = logits_of(tile)
        chosen.append(choose_tokens(logits, start, draws, step.targets[tile], carried.rows(tile)))
        if (batch.num_logprobs[tile] >= 0).any():
            scores.append(score_tokens(logits, chosen[-1].token_ids, step.num_logprobs[tile], k))
        else:
            scores.append(no_scores(len(logits), k, logits.device))
        if logit_rows is not None and step.logit_rows is not None:
            first, end = np.searchsorted(logit_rows, (start, start + size)).tolist()
            kept.append(logits.index_select(0, step.logit_rows[first:end] - start))
    return RowResults(
        chosen=Chosen(*map(_joined, zip(*chosen, strict=True))),
        scores=Scores(*map(_joined, zip(*scores, strict=True))),
        logits=_joined(tuple(kept)) if kept else None,
        logit_rows=logit_rows,
        hidden=None if hidden is None else hidden.float(),
    )


def carried_rows(token_ids: Tensor, last_states: Tensor, step: StepInputs) -> Carried:
    """What sampled rows go on from: of those that do not, any numbers.

    token_ids int32 [n]: those of the first rows. last_states: of samplers, by slot.
    """
    if step.carry_slots is None:
        return Carried(token_ids, last_states[:1].expand(len(token_ids)))
    slots = step.carry_slots.index_select(0, step.sample_rows[: len(token_ids)])
    return Carried(token_ids, last_states.index_select(0, slots.clamp(min=0)))


def keep_states(batch: Batch, found: Tensor, slots: Tensor, last_states: Tensor) -> None:
    """Of samplers that carry one, if there are any."""
    if not np.isnan(batch.sampling.sampler_state).all():
        last_states.index_copy_(0, slots.long(), found)


def is_greedy(batch: Batch) -> bool:
    """Whether every row wants the largest logit's token and nothing else."""
    rules = RowRules(batch.sampling, batch.allow_mask, batch.targets)
    return bool((batch.num_logprobs < 0).all()) and not rules.drawn_rows().any()


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class RunningStep:
    """The handle of a step under way."""

    def __init__(self, rows: RowResults) -> None:
        self._logit_rows = rows.logit_rows
        self._device = rows.chosen.token_ids.device
        self._has = (rows.logits is not None, rows.hidden is not None)
        extra = [tensor for tensor in (rows.logits, rows.hidden) if tensor is not None]
        self._download = Download([*rows.chosen, *rows.scores, *extra])

    def result(self) -> StepResult:
        """Waits for the device. Raises DeviceFailureError."""
        arrays = iter(_arrived(self._download, self._device))
        token_ids, sampler_state, logprobs, ranks, top_ids, top_logprobs = (next(arrays) for _ in range(6))
        has_logits, has_hidden = self._has
        logits: Float32 | None = next(arrays) if has_logits else None
        return StepResult(
            token_ids=token_ids,
            logprobs=logprobs,
            ranks=ranks,
            top_ids=top_ids,
            top_logprobs=top_logprobs,
            sampler_state=sampler_state,
            logits=logits,
            logit_rows=self._logit_rows,
            hidden=next(arrays) if has_hidden else None,
        )


class GreedyStep:
    """The handle of a step whose rows want nothing but their token."""

    def __init__(self, token_ids: Tensor) -> None:
        self._device = token_ids.device
        self._download = Download([token_ids])

    def result(self) -> StepResult:
        """As RunningStep.result."""
        (token_ids,) = _arrived(self._download, self._device)
        num_rows = len(token_ids)
        nothing = np.full(num_rows, np.nan, np.float32)
        return StepResult(
            token_ids=token_ids,
            logprobs=nothing,
            ranks=np.zeros(num_rows, np.int32),
            top_ids=np.empty((num_rows, 0), np.int32),
            top_logprobs=np.empty((num_rows, 0), np.float32),
            sampler_state=nothing,
        )


def _arrived(download: Download, device: torch.device) -> list[Array]:
    try:
        return download.arrays()
    except RuntimeError as error:
        raise device_failure(error, device) from error.with_traceback(None)
