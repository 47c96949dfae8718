"""The default order of docs/sampling.md for many rows at once. Nothing here waits for the device.

A candidate is a logit above -inf. Candidates lie in ascending order of ids, or best first beside their ids.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tuili.backends.torch.draw_plan import DrawPart
from tuili.backends.torch.scores import largest

_MOST = torch.finfo(torch.float32).max
_MIN_TEMPERATURE = 0.01  # of a dynamic temperature


def draw_tokens(logits: Tensor, part: DrawPart) -> Tensor:
    """int32 [n] from float32 [n, vocab], which is overwritten; 0 where nothing is allowed."""
    _add_bias(logits, part)
    if part.allow_mask is not None:
        logits = _masked(logits, part.allow_mask)
    _penalize(logits, part)
    _subtract_dry(logits, part)
    is_empty = logits.amax(-1) == -math.inf
    if part.num_drawn:
        logits = _heat(logits, part)
    if "num_sigmas" in part.used:
        logits = _top_n_sigma(logits, part)
    ids = None
    if part.width:
        ids, logits = _best_first(logits, part.width)
        logits = _limit(logits, part)
        if "typical_p" in part.used:
            ids, logits = _typical_p(ids, logits, part)
        logits = _xtc(_top_p(logits, part), part)
    elif "min_p" in part.used:
        logits = _min_p(logits, part)
    return torch.where(is_empty, 0, _choose(ids, logits, part)).int()


def _column(part: DrawPart, name: str) -> Tensor:
    """[n, 1]"""
    return part.columns[name][:, None]


def _kept(logits: Tensor, is_kept: Tensor) -> Tensor:
    return torch.where(is_kept, logits, -math.inf)


def _shifted(logits: Tensor) -> Tensor:
    """float64: the logarithm of the weights."""
    return logits.double() - logits.amax(-1, keepdim=True).double()


def _weights(logits: Tensor) -> Tensor:
    """float32, rounded from float64: the same on every device. 0 for what is no candidate."""
    return (logits - logits.amax(-1, keepdim=True)).double().exp().float()


def _sums(values: Tensor) -> Tensor:
    return values.cumsum(-1, dtype=torch.float64)


def _mean_shift(logits: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [n, 1]: the mean of the logarithms of the weights by the weights, and the weights' sum."""
    weights = _weights(logits)
    total = _sums(weights)[:, -1:]
    return _sums(torch.where(weights > 0, weights * _shifted(logits), 0.0))[:, -1:] / total, total


def _places(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], device=logits.device)


def _at(logits: Tensor, part: DrawPart, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """(Rows, places in the flat logits, values) of a sparse part."""
    rows, ids, values = part.csr[name]
    return rows, rows.long() * logits.shape[-1] + ids, values


def _add_bias(logits: Tensor, part: DrawPart) -> None:
    _, places, values = _at(logits, part, "bias")
    logits.view(-1).index_add_(0, places, values)


def _masked(logits: Tensor, allow_mask: Tensor) -> Tensor:
    bits = (allow_mask[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)) & 1
    return _kept(logits, bits.flatten(1)[:, : logits.shape[-1]] != 0)


def _penalize(logits: Tensor, part: DrawPart) -> None:
    rows, places, counts = _at(logits, part, "history")
    flat = logits.view(-1)
    seen = flat.index_select(0, places)
    repetition, frequency, presence = (
        part.columns[f"{name}_penalty"].index_select(0, rows) for name in ("repetition", "frequency", "presence")
    )
    subtracted = frequency * counts.float() + presence * (counts > 0)
    changed = torch.where(seen > 0, seen / repetition, seen * repetition) - subtracted
    flat.index_copy_(0, places, _bounded(changed, seen > -math.inf))


def _subtract_dry(logits: Tensor, part: DrawPart) -> None:
    _, places, values = _at(logits, part, "dry")
    flat = logits.view(-1)
    seen = flat.index_select(0, places)
    flat.index_copy_(0, places, _bounded(seen - values, seen > -math.inf))


def _bounded(logits: Tensor, is_candidate: Tensor) -> Tensor:
    return _kept(logits.clamp(-_MOST, _MOST), is_candidate)


def _heat(logits: Tensor, part: DrawPart) -> Tensor:
    temperature = _column(part, "temperature")
    if "spread" in part.used:
        temperature = _dynamic(logits, part)
    return _bounded(logits / temperature, logits > -math.inf)


def _dynamic(logits: Tensor, part: DrawPart) -> Tensor:
    """float32 [n, 1]: by the entropy of the candidates, where a row has a range."""
    given, spread = _column(part, "temperature").double(), _column(part, "spread").double()
    mean, total = _mean_shift(logits)
    count = (logits > -math.inf).sum(-1, keepdim=True)
    share = ((total.log() - mean) / count.double().log()).clamp(0.0, 1.0)
    low, high = (given - spread).clamp(min=0.0), given + spread
    found = (low + (high - low) * share ** _column(part, "exponent").double()).clamp(min=_MIN_TEMPERATURE)
    return torch.where((spread == 0) | (count < 2), given, found).float()


def _top_n_sigma(logits: Tensor, part: DrawPart) -> Tensor:
    is_candidate, wide = logits > -math.inf, logits.double()
    count = is_candidate.sum(-1, keepdim=True)
    mean = _sums(torch.where(is_candidate, wide, 0.0))[:, -1:] / count
    deviation = (_sums(torch.where(is_candidate, (wide - mean) ** 2, 0.0))[:, -1:] / count).sqrt()
    num = _column(part, "num_sigmas").double()
    return _kept(logits, (num < 0) | (wide >= wide.amax(-1, keepdim=True) - num * deviation))


def _best_first(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(Ids, logits) [n, width], equals by lowest id."""
    if width == logits.shape[-1]:
        ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
        return ids, ordered
    ids = largest(logits, width)
    return ids, logits.gather(-1, ids)


def _is_likely(logits: Tensor, part: DrawPart) -> Tensor:
    return _shifted(logits) >= _column(part, "min_p").double().log()


def _min_p(logits: Tensor, part: DrawPart) -> Tensor:
    return _kept(logits, _is_likely(logits, part))


def _limit(logits: Tensor, part: DrawPart) -> Tensor:
    """min_p and top_k, of candidates best first: each keeps the first of them."""
    places = _places(logits)
    is_kept = places < _column(part, "top_k")
    if "min_p" in part.used:
        is_kept = is_kept & (_is_likely(logits, part) | (places < _column(part, "min_p_keep")))
    return _kept(logits, is_kept)


def _before(sums: Tensor) -> Tensor:
    """The sum of what comes before each."""
    return torch.nn.functional.pad(sums[:, :-1], (1, 0))


def _is_within(weights: Tensor, mass: Tensor, min_keep: Tensor) -> Tensor:
    """The shortest prefix that reaches the mass, and at least min_keep and one."""
    sums = _sums(weights)
    is_first = _places(weights) < min_keep.clamp(min=1)
    return (_before(sums) < mass.double() * sums[:, -1:]) | is_first


def _typical_p(ids: Tensor, logits: Tensor, part: DrawPart) -> tuple[Tensor, Tensor]:
    """By ascending ids, as its equals want; then best first again."""
    ids, order = ids.sort(-1)
    logits = logits.gather(-1, order)
    nearest = (_shifted(logits) - _mean_shift(logits)[0]).abs().argsort(dim=-1, stable=True)
    is_near = _is_within(
        _weights(logits).gather(-1, nearest), _column(part, "typical_p"), _column(part, "typical_keep")
    )
    logits = _kept(logits, torch.zeros_like(is_near).scatter(-1, nearest, is_near))
    logits, order = logits.sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), logits


def _top_p(logits: Tensor, part: DrawPart) -> Tensor:
    if "top_p" not in part.used:
        return logits
    return _kept(logits, _is_within(_weights(logits), _column(part, "top_p"), _column(part, "top_p_keep")))


def _xtc(logits: Tensor, part: DrawPart) -> Tensor:
    if "xtc_probability" not in part.used:
        return logits
    weights, is_candidate = _weights(logits), logits > -math.inf
    bound = _column(part, "xtc_threshold").double() * _sums(weights)[:, -1:]
    num_dropped = ((weights >= bound) & is_candidate).sum(-1, keepdim=True) - 1
    num_left = is_candidate.sum(-1, keepdim=True) - num_dropped
    applies = _column(part, "chance") < _column(part, "xtc_probability").double()
    applies = applies & (num_dropped >= 1) & (num_left >= _column(part, "xtc_keep"))
    return _kept(logits, ~(applies & (_places(logits) < num_dropped)))


def _choose(ids: Tensor | None, logits: Tensor, part: DrawPart) -> Tensor:
    """int64 [n]: the draw, in ascending order of ids; of greedy rows the largest."""
    if ids is not None:
        ids, order = ids.sort(-1)
        logits = logits.gather(-1, order)
    at = logits.argmax(-1, keepdim=True)
    if part.num_drawn:
        at = torch.where(_column(part, "is_greedy") != 0, at, _drawn(logits, _column(part, "u")))
    return at[:, 0] if ids is None else ids.gather(-1, at)[:, 0]


def _drawn(logits: Tensor, u: Tensor) -> Tensor:
    """int64 [n, 1]: the first place whose running sum exceeds u times the total."""
    sums = _sums(_weights(logits))
    total = sums[:, -1:].contiguous()
    last = torch.searchsorted(sums, total)  # u * total may round up to the total itself
    return torch.searchsorted(sums, u * total, right=True).minimum(last).clamp(max=logits.shape[-1] - 1)
