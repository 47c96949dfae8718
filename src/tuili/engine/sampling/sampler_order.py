"""From sampling parameters to the steps of a chain, in the order asked for. What would change nothing is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from typing import NamedTuple

from tuili.backend import SamplerKind
from tuili.sampling_params import SamplingParams

_GREEDY = ("penalties", "dry")  # samplers that bear on the largest logit
_MIROSTAT = (*_GREEDY, "temperature")  # those that mirostat leaves in place
_PLAIN_ORDER = (  # what a row without a chain does
    SamplerKind.PENALTIES,
    SamplerKind.TEMPERATURE,
    SamplerKind.MIN_P,
    SamplerKind.TOP_K,
    SamplerKind.TOP_P,
)
_MAX_EXACT = 1 << 24  # integers that a float32 holds exactly; no vocabulary is larger


class ChainStep(NamedTuple):
    """One sampler and what it reads."""

    kind: SamplerKind
    values: tuple[float, float, float] = (0.0, 0.0, 0.0)


def _has_penalties(s: SamplingParams) -> bool:
    penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
    return penalties != (1.0, 0.0, 0.0) and s.repeat_last_n != 0


_STEPS: Mapping[str, Callable[[SamplingParams, float], ChainStep | None]] = {
    "penalties": lambda s, keep: ChainStep(SamplerKind.PENALTIES) if _has_penalties(s) else None,
    "dry": lambda s, keep: ChainStep(SamplerKind.DRY) if s.dry_multiplier and s.dry_penalty_last_n else None,
    "top_n_sigma": lambda s, keep: (
        ChainStep(SamplerKind.TOP_N_SIGMA, (s.top_n_sigma, 0, 0)) if s.top_n_sigma > 0 else None
    ),
    "top_k": lambda s, keep: ChainStep(SamplerKind.TOP_K, (min(s.top_k, _MAX_EXACT), 0, 0)) if s.top_k else None,
    "typ_p": lambda s, keep: ChainStep(SamplerKind.TYPICAL_P, (s.typical_p, keep, 0)) if s.typical_p < 1 else None,
    "top_p": lambda s, keep: ChainStep(SamplerKind.TOP_P, (s.top_p, keep, 0)) if s.top_p < 1 else None,
    "min_p": lambda s, keep: ChainStep(SamplerKind.MIN_P, (s.min_p, keep, 0)) if s.min_p > 0 else None,
    "xtc": lambda s, keep: (
        ChainStep(SamplerKind.XTC, (s.xtc_probability, s.xtc_threshold, keep)) if s.xtc_probability > 0 else None
    ),
    "temperature": lambda s, keep: (
        ChainStep(SamplerKind.TEMPERATURE, (s.temperature, s.dynatemp_range, s.dynatemp_exponent))
        if s.temperature != 1 or s.dynatemp_range > 0
        else None
    ),
    "adaptive_p": lambda s, keep: (
        ChainStep(SamplerKind.ADAPTIVE_P, (s.adaptive_target, s.adaptive_decay, 0)) if s.adaptive_target >= 0 else None
    ),
}


def chain_steps(s: SamplingParams) -> list[ChainStep]:
    """Greedy rows keep what bears on the largest logit; mirostat replaces all that limits candidates.

    What carries a state from token to token comes last, wherever it is named.
    """
    order: ListLike[str] = sorted(s.order, key=lambda name: name == "adaptive_p")
    if s.temperature == 0:
        order = [name for name in order if name in _GREEDY]
    elif s.mirostat:
        order = [name for name in order if name in _MIROSTAT]
    keep = float(min(s.min_keep, _MAX_EXACT))
    steps = [step for name in order if (step := _STEPS[name](s, keep)) is not None]
    if s.mirostat and s.temperature > 0:
        kind = SamplerKind.MIROSTAT_1 if s.mirostat == 1 else SamplerKind.MIROSTAT_2
        steps.append(ChainStep(kind, (s.mirostat_tau, s.mirostat_eta, 0)))
    return steps


def first_state(steps: ListLike[ChainStep]) -> float:
    """What the last step carries along before an answer's first token; NaN where it carries nothing."""
    if not steps:
        return math.nan
    kind, (first, _, _) = steps[-1]
    if kind in (SamplerKind.MIROSTAT_1, SamplerKind.MIROSTAT_2):
        return 2.0 * first
    return first if kind is SamplerKind.ADAPTIVE_P else math.nan


def carries_state(s: SamplingParams) -> bool:
    """Whether each choice hands something on to the next."""
    return not math.isnan(first_state(chain_steps(s)))


def plain_values(s: SamplingParams, steps: ListLike[ChainStep]) -> tuple[float, int, float, float] | None:
    """temperature, top_k, top_p and min_p of a row that needs no chain; None when these steps need one."""
    kinds = [step.kind for step in steps]
    values = {step.kind: step.values[0] for step in steps}
    is_dynamic = s.dynatemp_range > 0 and SamplerKind.TEMPERATURE in kinds
    keeps_more = s.min_keep > 1 and (SamplerKind.TOP_P in kinds or SamplerKind.MIN_P in kinds)
    if kinds != [kind for kind in _PLAIN_ORDER if kind in values] or is_dynamic or keeps_more:
        return None
    temperature = values.get(SamplerKind.TEMPERATURE, 1.0) if s.temperature > 0 else 0.0
    top_k = s.top_k if SamplerKind.TOP_K in kinds else 0
    return temperature, top_k, values.get(SamplerKind.TOP_P, 1.0), values.get(SamplerKind.MIN_P, 0.0)
