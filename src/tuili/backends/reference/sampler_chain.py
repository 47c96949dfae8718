"""The chain of docs/sampling.md, one sampler after another, over the candidates of one row. Knows logits only.

Candidates are kept in ascending order of ids. `Drawing` gives what one row's choice may depend on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Bool, Float32, Int32, Int64, SamplerKind

Float64 = NDArray[np.float64]
MIN_TEMPERATURE = 0.01  # of a dynamic temperature
MIROSTAT_M = 100  # candidates that mirostat 1 looks at
ADAPTIVE_WIDTH, ADAPTIVE_PEAK, ADAPTIVE_SHARPNESS = 0.3, 5.0, 10.0  # of the logits that adaptive-p makes
_MOST = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class Candidates:
    """What may still be chosen, and what samplers read beside their own values."""

    ids: Int64  # [C] ascending
    logits: Float32  # [C] all finite
    penalize: Callable[[Int64, Float32], Float32]  # the row's penalties, on (ids, logits)
    dry: Mapping[int, np.float32]
    chance: float  # in [0, 1), for XTC
    state: float  # of the last step: mirostat's mu, adaptive-p's average
    vocab_size: int
    shares: Float64 | None = None  # [C] probabilities before adaptive-p

    def keep(self, kept: Bool) -> None:
        """Where none is to be kept, all are: something must be left to choose."""
        if kept.any():
            self.ids, self.logits = self.ids[kept], self.logits[kept]

    @property
    def shifted(self) -> Float64:
        """Logits less the largest: the logarithm of the weights."""
        return self.logits.astype(np.float64) - float(self.logits.max())

    @property
    def weights(self) -> Float32:
        with np.errstate(over="ignore"):  # logits as far apart as floats can be
            weights: Float32 = np.exp(self.logits - self.logits.max())
        return weights


def bounded(logits: NDArray[np.floating]) -> Float32:
    """As near as a float32 can say: never infinite, so that samplers can reckon with them."""
    return np.clip(logits.astype(np.float64), -_MOST, _MOST).astype(np.float32)


def running_sums(weights: Float32) -> Float64:
    return np.cumsum(weights, dtype=np.float64)


def _best_first(c: Candidates) -> Int64:
    return np.argsort(-c.logits, kind="stable")


def _keep_first(c: Candidates, order: Int64, count: int) -> None:
    kept = np.zeros(len(order), np.bool_)
    kept[order[:count]] = True
    c.keep(kept)


def _keep_mass(c: Candidates, order: Int64, mass: float, min_keep: int) -> None:
    """The shortest prefix of `order` whose weight reaches `mass` of all, and at least min_keep."""
    weights = c.weights
    count = int(np.searchsorted(running_sums(weights[order]), mass * running_sums(weights)[-1])) + 1
    _keep_first(c, order, max(count, min_keep))


def _penalties(c: Candidates, values: Float32) -> None:
    c.logits = c.penalize(c.ids, c.logits)


def _dry(c: Candidates, values: Float32) -> None:
    subtracted = np.array([c.dry.get(i, 0) for i in c.ids.tolist()], np.float32)
    with np.errstate(over="ignore"):
        c.logits = bounded(c.logits - subtracted)


def _top_n_sigma(c: Candidates, values: Float32) -> None:
    wide = c.logits.astype(np.float64)
    mean = np.cumsum(wide)[-1] / len(wide)
    deviation = math.sqrt(np.cumsum((wide - mean) ** 2)[-1] / len(wide))
    c.keep(wide >= wide.max() - float(values[0]) * deviation)


def _top_k(c: Candidates, values: Float32) -> None:
    _keep_first(c, _best_first(c), int(values[0]))


def _typical_p(c: Candidates, values: Float32) -> None:
    shifted, sums = c.shifted, running_sums(c.weights)
    mean = np.cumsum(c.weights.astype(np.float64) * shifted)[-1] / sums[-1]
    order = np.argsort(np.abs(shifted - mean), kind="stable")
    _keep_mass(c, order, float(values[0]), int(values[1]))


def _top_p(c: Candidates, values: Float32) -> None:
    _keep_mass(c, _best_first(c), float(values[0]), int(values[1]))


def _min_p(c: Candidates, values: Float32) -> None:
    kept = c.shifted >= (math.log(float(values[0])) if values[0] > 0 else -math.inf)
    if kept.sum() >= values[1]:
        c.keep(kept)
    else:
        _keep_first(c, _best_first(c), int(values[1]))


def _xtc(c: Candidates, values: Float32) -> None:
    probability, threshold, min_keep = values.tolist()
    if c.chance >= probability:
        return
    weights = c.weights
    num_dropped = int((weights >= threshold * running_sums(weights)[-1]).sum()) - 1
    if num_dropped < 1 or len(weights) - num_dropped < min_keep:
        return
    kept = np.ones(len(weights), np.bool_)
    kept[_best_first(c)[:num_dropped]] = False
    c.keep(kept)


def _temperature(c: Candidates, values: Float32) -> None:
    with np.errstate(over="ignore"):
        c.logits = bounded(c.logits / np.float32(_dynamic(c, *values.tolist())))


def _dynamic(c: Candidates, temperature: float, spread: float, exponent: float) -> float:
    """The temperature by the entropy of the candidates, in [temperature - spread, temperature + spread]."""
    if spread == 0 or len(c.ids) < 2:
        return temperature
    sums = running_sums(c.weights)
    mean = np.cumsum(c.weights.astype(np.float64) * c.shifted)[-1] / sums[-1]
    entropy = math.log(sums[-1]) - mean
    share = min(max(entropy / math.log(len(c.ids)), 0.0), 1.0)
    low, high = max(temperature - spread, 0.0), temperature + spread
    return float(max(low + (high - low) * share**exponent, MIN_TEMPERATURE))


def _mirostat_1(c: Candidates, values: Float32) -> None:
    best = np.sort(c.logits.astype(np.float64))[::-1][:MIROSTAT_M]
    _keep_first(c, _best_first(c), zipf_count(best, c.state, c.vocab_size))


def zipf_count(best: Float64, mu: float, vocab_size: int) -> int:
    """How many candidates keep the surprise near mu if weights fall as Zipf's law, fitted to the best logits."""
    if len(best) < 2:
        return 1
    steps = np.log(np.arange(2, len(best) + 1) / np.arange(1, len(best)))
    exponent = float(np.cumsum(steps * (best[:-1] - best[1:]))[-1] / np.cumsum(steps * steps)[-1])
    epsilon, log_size = exponent - 1.0, math.log(vocab_size)
    share = 1.0 / log_size if abs(epsilon) < 1e-9 else epsilon / -math.expm1(-epsilon * log_size)
    power = math.log(share) + mu * math.log(2.0)
    if exponent == 0.0:
        return 1 if power < 0.0 else vocab_size
    return int(min(max(math.exp(min(power / exponent, 30.0)), 1.0), float(vocab_size)))


def _mirostat_2(c: Candidates, values: Float32) -> None:
    surprise = (math.log(running_sums(c.weights)[-1]) - c.shifted) / math.log(2.0)
    kept = surprise <= c.state
    if not kept.any():
        kept[int(np.argmax(c.logits))] = True
    c.keep(kept)


def _adaptive_p(c: Candidates, values: Float32) -> None:
    weights = c.weights
    c.shares = weights.astype(np.float64) / running_sums(weights)[-1]
    wanted = min(max(2.0 * float(values[0]) - c.state, 0.0), 1.0)
    away = np.abs(c.shares - wanted) / ADAPTIVE_WIDTH
    c.logits = (ADAPTIVE_PEAK - ADAPTIVE_SHARPNESS * away * away / (1.0 + away)).astype(np.float32)


_SAMPLERS: Mapping[SamplerKind, Callable[[Candidates, Float32], None]] = {
    SamplerKind.PENALTIES: _penalties,
    SamplerKind.DRY: _dry,
    SamplerKind.TOP_N_SIGMA: _top_n_sigma,
    SamplerKind.TOP_K: _top_k,
    SamplerKind.TYPICAL_P: _typical_p,
    SamplerKind.TOP_P: _top_p,
    SamplerKind.MIN_P: _min_p,
    SamplerKind.XTC: _xtc,
    SamplerKind.TEMPERATURE: _temperature,
    SamplerKind.MIROSTAT_1: _mirostat_1,
    SamplerKind.MIROSTAT_2: _mirostat_2,
    SamplerKind.ADAPTIVE_P: _adaptive_p,
}


def run_chain(candidates: Candidates, kinds: Int32, values: Float32) -> None:
    """kinds [C], values [C, 3]."""
    for kind, own in zip(kinds.tolist(), values, strict=True):
        _SAMPLERS[SamplerKind(kind)](candidates, own)


def next_state(c: Candidates, drawn: int, kind: int, values: Float32) -> float:
    """What the last step carries on once the candidate at index `drawn` was chosen; NaN when `kind` carries nothing."""
    if kind == SamplerKind.ADAPTIVE_P and c.shares is not None:
        decay = float(values[1])
        return decay * c.state + (1.0 - decay) * float(c.shares[drawn])
    if kind not in (SamplerKind.MIROSTAT_1, SamplerKind.MIROSTAT_2):
        return math.nan
    surprise = (math.log(running_sums(c.weights)[-1]) - float(c.shifted[drawn])) / math.log(2.0)
    return c.state - float(values[1]) * (surprise - float(values[0]))
