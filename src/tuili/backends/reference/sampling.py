"""The definition of docs/sampling.md, one row at a time, in the order it is written there. Knows logits only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Bool, Choices, Float32, Int64, SamplingArrays, UInt32
from tuili.backends.reference.sampler_chain import Candidates, bounded, next_state, run_chain, running_sums

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF

PURPOSE_TOKEN, PURPOSE_XTC = 0, 1


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., 2011) on 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def uniform(seed: int, position: int, sample_index: int, purpose: int = PURPOSE_TOKEN) -> float:
    """53 random bits as a number in [0, 1)."""
    x0, x1, _, _ = philox4x32((position, sample_index, purpose, 0), (seed & _MASK32, seed >> 32))
    return float((x0 << 21) ^ (x1 >> 11)) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Score:
    """What raw logits say about one id, and the k best ids beside it."""

    logprob: float
    rank: int
    top_ids: Int64  # [k] best first
    top_logprobs: Float32  # [k]


def score(logits: Float32, token_id: int, k: int) -> Score:
    """logits: [vocab], untouched by any sampling parameter."""
    wide = logits.astype(np.float64)
    top = wide.max()
    logprobs = (wide - (top + np.log(np.exp(wide - top).sum()))).astype(np.float32)
    best = largest(logits, k)
    rank = 1 + int((logits > logits[token_id]).sum())
    return Score(float(logprobs[token_id]), rank, best, logprobs[best])


class Choice(NamedTuple):
    """A row's token, and what its last step carries to the next."""

    token_id: int
    sampler_state: float


def choose(logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
    """A token for each row of logits [R, vocab]."""
    chosen = [choose_row(row, sampling, r, allow_mask) for r, row in enumerate(logits)]
    return Choices(np.array([c.token_id for c in chosen], np.int32), np.array([c.sampler_state for c in chosen], "f4"))


def choose_row(logits: Float32, sampling: SamplingArrays, r: int, allow_mask: UInt32 | None) -> Choice:
    """The choice for logits [vocab] of row r of `sampling` and `allow_mask`."""
    allowed = _bias_and_mask(logits, sampling, r, None if allow_mask is None else allow_mask[r])
    chain = slice(int(sampling.chain_start[r]), int(sampling.chain_start[r + 1]))
    if chain.start < chain.stop and allowed.max() > -np.inf:
        return _choose_by_chain(allowed, sampling, r, chain)
    adjusted = penalize(np.arange(len(logits)), allowed, sampling, r)
    temperature, top = sampling.temperature[r], adjusted.max()
    if temperature == 0 or top == -np.inf:  # -inf: nothing is allowed, and every choice is as wrong
        return Choice(int(adjusted.argmax()), math.nan)
    scaled = adjusted / temperature
    weights = np.exp(scaled - scaled.max())
    kept = _kept(weights, float(sampling.min_p[r]), int(sampling.top_k[r]), float(sampling.top_p[r]))
    ids = np.flatnonzero(kept)
    return Choice(int(ids[_draw(weights[ids], sampling, r)]), math.nan)


def _choose_by_chain(allowed: Float32, sampling: SamplingArrays, r: int, chain: slice) -> Choice:
    ids = np.flatnonzero(allowed > -np.inf)
    dry = slice(int(sampling.dry_start[r]), int(sampling.dry_start[r + 1]))
    candidates = Candidates(
        ids=ids,
        logits=allowed[ids],
        penalize=partial(penalize, sampling=sampling, r=r),
        dry=dict(zip(sampling.dry_ids[dry].tolist(), sampling.dry_values[dry], strict=True)),
        chance=_uniform(sampling, r, PURPOSE_XTC),
        state=float(sampling.sampler_state[r]),
        vocab_size=len(allowed),
    )
    kinds, values = sampling.chain_kinds[chain], sampling.chain_values[chain]
    run_chain(candidates, kinds, values)
    if sampling.temperature[r] == 0:
        return Choice(int(candidates.ids[candidates.logits.argmax()]), math.nan)
    drawn = _draw(candidates.weights, sampling, r)
    return Choice(int(candidates.ids[drawn]), next_state(candidates, drawn, int(kinds[-1]), values[-1]))


def _draw(weights: Float32, sampling: SamplingArrays, r: int) -> int:
    """The first index whose running sum exceeds u times the total."""
    sums = running_sums(weights)
    drawn = int(np.searchsorted(sums, _uniform(sampling, r, PURPOSE_TOKEN) * sums[-1], side="right"))
    return min(drawn, int(np.searchsorted(sums, sums[-1])))  # u * total may round up to the total itself


def _uniform(sampling: SamplingArrays, r: int, purpose: int) -> float:
    return uniform(int(sampling.seed[r]), int(sampling.position[r]), int(sampling.sample_index[r]), purpose)


def largest(values: NDArray[np.floating], k: int) -> Int64:
    """Indices of the k largest values, best first; of equals the lowest index."""
    k = min(k, len(values))
    if k == 0:
        return np.empty(0, np.int64)
    edge = np.partition(values, len(values) - k)[len(values) - k]
    candidates = np.flatnonzero(values >= edge)
    return candidates[np.argsort(-values[candidates], kind="stable")][:k]


def _bias_and_mask(logits: Float32, sampling: SamplingArrays, r: int, allow_mask: UInt32 | None) -> Float32:
    """On a copy."""
    adjusted = logits.copy()
    bias = slice(int(sampling.bias_start[r]), int(sampling.bias_start[r + 1]))
    np.add.at(adjusted, sampling.bias_ids[bias], sampling.bias_values[bias])
    if allow_mask is not None:
        bits = np.unpackbits(allow_mask.view(np.uint8), bitorder="little")[: len(logits)]
        adjusted[bits == 0] = -np.inf
    return adjusted


def penalize(ids: Int64, logits: Float32, sampling: SamplingArrays, r: int) -> Float32:
    """The row's penalties on the logits [C] of `ids` [C], which ascend."""
    history = slice(int(sampling.history_start[r]), int(sampling.history_start[r + 1]))
    at = np.searchsorted(ids, sampling.history_ids[history])
    is_present = np.take(ids, at, mode="clip") == sampling.history_ids[history]
    present = np.flatnonzero(is_present & (np.take(logits, at, mode="clip") > -np.inf))
    at, counts = at[present], sampling.history_counts[history][present]
    adjusted, penalty = logits.copy(), sampling.repetition_penalty[r]
    seen = adjusted[at]
    subtracted = sampling.frequency_penalty[r] * counts.astype(np.float32) + sampling.presence_penalty[r] * (counts > 0)
    with np.errstate(over="ignore"):
        adjusted[at] = bounded(np.where(seen > 0, seen / penalty, seen * penalty) - subtracted)
    return adjusted


def _kept(weights: Float32, min_p: float, top_k: int, top_p: float) -> Bool:
    """Which ids survive min_p, top_k and top_p, in this order."""
    kept = weights >= min_p
    if 0 < top_k < len(weights):
        is_top = np.zeros(len(weights), np.bool_)
        is_top[largest(np.where(kept, weights, -1), top_k)] = True
        kept &= is_top
    if top_p < 1:
        ids = np.flatnonzero(kept)
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        sums = np.cumsum(weights[ids], dtype=np.float64)
        kept = np.zeros(len(weights), np.bool_)
        kept[ids[: int(np.searchsorted(sums, top_p * sums[-1])) + 1]] = True
    return kept
