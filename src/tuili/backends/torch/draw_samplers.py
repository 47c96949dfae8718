"""The samplers of docs/sampling.md over the candidates of many rows at once. Nothing here waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuili.backend import CARRIED_STATE, SamplerKind
from tuili.backends.torch import draw_plan
from tuili.backends.torch.draw_plan import DrawPart, DrawStep
from tuili.backends.torch.scores import largest

_MOST = torch.finfo(torch.float32).max
_MIN_TEMPERATURE = 0.01  # of a dynamic temperature
_MIROSTAT_M = 100  # candidates that mirostat 1 looks at
_MOST_LOG_COUNT = 30.0  # no vocabulary is larger than its exponential
_ADAPTIVE_WIDTH, _ADAPTIVE_PEAK, _ADAPTIVE_SHARPNESS = 0.3, 5.0, 10.0  # of the logits that adaptive-p makes


@dataclass(slots=True)
class Candidates:
    """Of n rows. A candidate is a logit above -inf. They lie in ascending order of ids, or best first, equals by
    lowest id.
    """

    logits: Tensor  # float32 [n, C]
    vocab_size: int
    ids: Tensor | None = None  # int64 [n, C]; None: place i is id i
    is_best_first: bool = False
    shares: Tensor | None = None  # float64 [n, C] probabilities before adaptive-p

    def keep(self, is_kept: Tensor) -> None:
        self.logits = _kept(self.logits, is_kept)

    def best_first(self, width: int | None = None) -> None:
        """All of them, or the `width` best."""
        num = self.logits.shape[-1]
        width = num if width is None else min(width, num)
        if not self.is_best_first:
            self._take(
                largest(self.logits, width)
                if width < num
                else self.logits.argsort(dim=-1, descending=True, stable=True)
            )
            self.is_best_first = True
        elif width < num and self.ids is not None:
            self.logits, self.ids = self.logits[:, :width], self.ids[:, :width]

    def ascending(self) -> None:
        if self.is_best_first and self.ids is not None:
            if self.logits.shape[-1] == self.vocab_size:
                self.whole()
            else:
                self._take(self.ids.argsort(dim=-1))
                self.is_best_first = False

    def whole(self) -> None:
        """A place for every id, whether it is a candidate or not."""
        if self.ids is not None:
            everywhere = self.logits.new_full((len(self.logits), self.vocab_size), -math.inf)
            self.logits = everywhere.scatter_(-1, self.ids, self.logits)
            self.ids, self.is_best_first = None, False

    def _take(self, order: Tensor) -> None:
        self.logits = self.logits.gather(-1, order)
        self.ids = order if self.ids is None else self.ids.gather(-1, order)

    @property
    def places(self) -> Tensor:
        return torch.arange(self.logits.shape[-1], device=self.logits.device)

    @property
    def shifted(self) -> Tensor:
        """float64: the logarithm of the weights."""
        return self.logits.double() - self.logits.amax(-1, keepdim=True).double()

    @property
    def weights(self) -> Tensor:
        """float32, rounded from float64: the same on every device. 0 for what is no candidate."""
        return (self.logits - self.logits.amax(-1, keepdim=True)).double().exp().float()


def run_samplers(c: Candidates, part: DrawPart) -> None:
    for step in part.steps:
        _SAMPLERS[step.kind](c, part, step)


def with_carried(part: DrawPart, tokens: Tensor) -> DrawPart:
    """tokens int32 [n] in place of -1 in their rows' histories, counted once more than what is said of them elsewhere.

    Where a history has the id already, both entries say the same of it.
    """
    rows, ids, counts = part.csr["history"]
    is_carried = ids < 0
    none = torch.zeros_like(tokens)
    has_carried = none.index_add(0, rows, is_carried.int())
    coming = tokens.index_select(0, rows)
    is_same = (ids == coming) & (has_carried.index_select(0, rows) > 0)
    known = none.index_add(0, rows, torch.where(is_same, counts, 0)).index_select(0, rows)
    history = rows, torch.where(is_carried, coming, ids), torch.where(is_carried | is_same, known + 1, counts)
    return replace(part, csr={**part.csr, "history": history})


def with_states(part: DrawPart, states: Tensor) -> DrawPart:
    """states float32 [n] in place of CARRIED_STATE."""
    known = part.columns["state"]
    return replace(part, columns={**part.columns, "state": torch.where(known == CARRIED_STATE, states, known)})


def add_bias(logits: Tensor, part: DrawPart) -> None:
    """In place."""
    _, places, values = _at(logits, part, "bias")
    logits.view(-1).index_add_(0, places, values)


def allowed(logits: Tensor, allow_mask: Tensor) -> Tensor:
    bits = (allow_mask[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)) & 1
    return _kept(logits, bits.flatten(1)[:, : logits.shape[-1]] != 0)


def running_sums(values: Tensor) -> Tensor:
    return values.cumsum(-1, dtype=torch.float64)


def next_states(c: Candidates, part: DrawPart, at: Tensor) -> Tensor:
    """float32 [n]: what the last step carries on once the candidates at places `at` [n, 1] were chosen; else NaN."""
    last = part.steps[-1]
    first, second = _value(last, 0).double(), _value(last, 1).double()
    state = part.columns["state"][:, None].double()
    if last.kind is SamplerKind.ADAPTIVE_P and c.shares is not None:
        after = second * state + (1.0 - second) * c.shares.gather(-1, at)
    else:
        surprise = (running_sums(c.weights)[:, -1:].log() - c.shifted.gather(-1, at)) / math.log(2.0)
        after = state - second * (surprise - first)
    return after.float()[:, 0]


def carries_state(part: DrawPart) -> bool:
    carrying = (SamplerKind.MIROSTAT_1, SamplerKind.MIROSTAT_2, SamplerKind.ADAPTIVE_P)
    return bool(part.steps) and part.steps[-1].kind in carrying


def _kept(logits: Tensor, is_kept: Tensor) -> Tensor:
    return torch.where(is_kept, logits, -math.inf)


def _bounded(logits: Tensor, is_candidate: Tensor) -> Tensor:
    return _kept(logits.clamp(-_MOST, _MOST), is_candidate)


def _value(step: DrawStep, i: int) -> Tensor:
    """[n, 1]"""
    return step.values[:, i : i + 1]


def _at(logits: Tensor, part: DrawPart, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """(Rows, places in the flat logits, values) of a sparse part."""
    rows, ids, values = part.csr[name]
    return rows, rows.long() * logits.shape[-1] + ids, values


def _mean_shift(c: Candidates) -> tuple[Tensor, Tensor]:
    """float64 [n, 1]: the mean of the logarithms of the weights by the weights, and the weights' sum."""
    weights = c.weights
    total = running_sums(weights)[:, -1:]
    return running_sums(torch.where(weights > 0, weights * c.shifted, 0.0))[:, -1:] / total, total


def _penalties(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    if not part.csr["history"][0].numel():
        return
    c.whole()
    rows, places, counts = _at(c.logits, part, "history")
    flat = c.logits.view(-1)
    seen = flat.index_select(0, places)
    repetition, frequency, presence = (
        part.columns[f"{name}_penalty"].index_select(0, rows) for name in ("repetition", "frequency", "presence")
    )
    subtracted = frequency * counts.float() + presence * (counts > 0)
    changed = torch.where(seen > 0, seen / repetition, seen * repetition) - subtracted
    flat.index_copy_(0, places, _bounded(changed, seen > -math.inf))


def _dry(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    if not part.csr["dry"][0].numel():
        return
    c.whole()
    _, places, values = _at(c.logits, part, "dry")
    flat = c.logits.view(-1)
    seen = flat.index_select(0, places)
    flat.index_copy_(0, places, _bounded(seen - values, seen > -math.inf))


def _temperature(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.ascending()  # what was unequal may become equal
    temperature = _dynamic(c, step) if step.most[1] > 0 else _value(step, 0)
    c.logits = _bounded(c.logits / temperature, c.logits > -math.inf)


def _dynamic(c: Candidates, step: DrawStep) -> Tensor:
    """float32 [n, 1]: by the entropy of the candidates, where a row has a range."""
    given, spread, exponent = (_value(step, i).double() for i in range(3))
    mean, total = _mean_shift(c)
    count = (c.logits > -math.inf).sum(-1, keepdim=True)
    share = ((total.log() - mean) / count.double().log()).clamp(0.0, 1.0)
    low, high = (given - spread).clamp(min=0.0), given + spread
    found = (low + (high - low) * share**exponent).clamp(min=_MIN_TEMPERATURE)
    return torch.where((spread == 0) | (count < 2), given, found).float()


def _top_n_sigma(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.ascending()
    is_candidate, wide = c.logits > -math.inf, c.logits.double()
    count = is_candidate.sum(-1, keepdim=True)
    mean = running_sums(torch.where(is_candidate, wide, 0.0))[:, -1:] / count
    deviation = (running_sums(torch.where(is_candidate, (wide - mean) ** 2, 0.0))[:, -1:] / count).sqrt()
    num = _value(step, 0).double()
    c.keep((num < 0) | (wide >= wide.amax(-1, keepdim=True) - num * deviation))


def _min_p(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    """Keeps the first best first, so whatever order they are in may stay."""
    if step.most[1] > 1:
        c.best_first()
        is_first = c.places < _value(step, 1)
        c.keep(is_first | (c.shifted >= _value(step, 0).double().log()))
    else:
        c.keep(c.shifted >= _value(step, 0).double().log())


def _top_k(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.best_first(int(step.most[0]) if step.most[0] <= draw_plan.NARROW else None)
    c.keep(c.places < _value(step, 0))


def _is_within(weights: Tensor, step: DrawStep) -> Tensor:
    """The shortest prefix that reaches the mass, and at least min_keep and one."""
    sums = running_sums(weights)
    before = torch.nn.functional.pad(sums[:, :-1], (1, 0))
    is_first = torch.arange(weights.shape[-1], device=weights.device) < _value(step, 1).clamp(min=1)
    return (before < _value(step, 0).double() * sums[:, -1:]) | is_first


def _typical_p(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.ascending()
    nearest = (c.shifted - _mean_shift(c)[0]).abs().argsort(dim=-1, stable=True)
    is_near = _is_within(c.weights.gather(-1, nearest), step)
    c.keep(torch.zeros_like(is_near).scatter(-1, nearest, is_near))


def _top_p(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.best_first()
    c.keep(_is_within(c.weights, step))


def _xtc(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.best_first()
    probability, threshold, min_keep = (_value(step, i) for i in range(3))
    weights, is_candidate = c.weights, c.logits > -math.inf
    bound = threshold.double() * running_sums(weights)[:, -1:]
    num_dropped = ((weights >= bound) & is_candidate).sum(-1, keepdim=True) - 1
    num_left = is_candidate.sum(-1, keepdim=True) - num_dropped
    applies = part.columns["chance"][:, None] < probability.double()
    applies = applies & (num_dropped >= 1) & (num_left >= min_keep)
    c.keep(~(applies & (c.places < num_dropped)))
    c.ascending()  # the first places are empty now


def _mirostat_1(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.best_first()
    c.keep(c.places < _zipf_counts(c, part.columns["state"][:, None].double()))


def _zipf_counts(c: Candidates, mu: Tensor) -> Tensor:
    """float64 [n, 1]: how many keep the surprise near mu if weights fall as Zipf's law, fitted to the best logits."""
    best = c.logits[:, :_MIROSTAT_M].double()
    is_pair = best[:, 1:] > -math.inf
    ranks = torch.arange(1, best.shape[1], device=best.device, dtype=torch.float64)
    steps = torch.where(is_pair, ((ranks + 1) / ranks).log(), 0.0)
    falls = torch.where(is_pair, best[:, :-1] - best[:, 1:], 0.0)
    exponent = (steps * falls).sum(-1, keepdim=True) / (steps * steps).sum(-1, keepdim=True)
    epsilon, log_size = exponent - 1.0, math.log(c.vocab_size)
    share = torch.where(epsilon.abs() < 1e-9, 1.0 / log_size, epsilon / -torch.expm1(-epsilon * log_size))
    power = share.log() + mu * math.log(2.0)
    count = (power / exponent).clamp(max=_MOST_LOG_COUNT).exp().floor().clamp(1.0, float(c.vocab_size))
    flat = torch.where(power < 0.0, torch.ones_like(power), float(c.vocab_size))
    return torch.where(is_pair.any(-1, keepdim=True), torch.where(exponent == 0.0, flat, count), 1.0)


def _mirostat_2(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.ascending()
    surprise = (running_sums(c.weights)[:, -1:].log() - c.shifted) / math.log(2.0)
    is_kept = surprise <= part.columns["state"][:, None].double()
    is_best = c.places == c.logits.argmax(-1, keepdim=True)
    c.keep(is_kept | (is_best & ~is_kept.any(-1, keepdim=True)))


def _adaptive_p(c: Candidates, part: DrawPart, step: DrawStep) -> None:
    c.ascending()
    weights, is_candidate = c.weights, c.logits > -math.inf
    c.shares = weights.double() / running_sums(weights)[:, -1:]
    wanted = (2.0 * _value(step, 0).double() - part.columns["state"][:, None].double()).clamp(0.0, 1.0)
    away = (c.shares - wanted).abs() / _ADAPTIVE_WIDTH
    c.logits = _kept((_ADAPTIVE_PEAK - _ADAPTIVE_SHARPNESS * away * away / (1.0 + away)).float(), is_candidate)


_SAMPLERS: Mapping[SamplerKind, Callable[[Candidates, DrawPart, DrawStep], None]] = {
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
