"""Rotary frequencies of every RopeSpec, in plain float64. Knows the published formulas; no arrays, no models.

Frequencies are a function of the loaded model alone: kinds whose formula depends on the length of the text
(dynamic, longrope) take `context_len`, the longest text the model was loaded for (max_model_len). A token's
keys therefore never depend on how much text has come so far or how a prompt was cut into chunks.

Sources: RoFormer (2104.09864); linear: position interpolation (2306.15595); dynamic: NTK-aware scaling as in
transformers; yarn: YaRN (2309.00071); longrope: LongRoPE (2402.13753); llama3: Llama 3.1's smoothed scaling.
"""

from __future__ import annotations

import math

from tuili.models.spec import RopeScaling, RopeSpec


def inverse_frequencies(rope: RopeSpec, context_len: int) -> tuple[float, ...]:
    """Radians per position for each of the dim / 2 rotated pairs: pair j is dimensions (j, j + dim / 2)."""
    theta, scaling = rope.theta, rope.scaling
    if scaling is not None and scaling.kind == "dynamic":
        theta = _dynamic_theta(rope, scaling, context_len)
    plain = tuple(theta ** (-j / rope.dim) for j in range(0, rope.dim, 2))
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.frequency_divisors:
        return tuple(f / divisor for f, divisor in zip(plain, scaling.frequency_divisors, strict=True))
    if scaling.kind == "linear":
        return tuple(f / scaling.factor for f in plain)
    if scaling.kind == "llama3":
        return tuple(_llama3_frequency(f, scaling) for f in plain)
    if scaling.kind == "longrope":
        is_long = context_len > scaling.original_max_position
        divisors = scaling.long_factor if is_long else scaling.short_factor
        return tuple(f / divisor for f, divisor in zip(plain, divisors, strict=True))
    return _yarn_frequencies(plain, rope, scaling)


def attention_factor(rope: RopeSpec, context_len: int) -> float:
    """What the cosines and sines are multiplied by. `context_len` as in inverse_frequencies."""
    scaling = rope.scaling
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "longrope":
        if scaling.factor <= 1.0:
            return 1.0
        return math.sqrt(1.0 + math.log(scaling.factor) / math.log(scaling.original_max_position))
    if scaling.mscale and scaling.mscale_all_dim:
        return _yarn_mscale(scaling.factor, scaling.mscale) / _yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return _yarn_mscale(scaling.factor, 1.0)


def _dynamic_theta(rope: RopeSpec, scaling: RopeScaling, context_len: int) -> float:
    trained_len = scaling.original_max_position
    stretch = scaling.factor * max(context_len, trained_len) / trained_len - (scaling.factor - 1.0)
    return rope.theta * math.pow(stretch, rope.dim / (rope.dim - 2))


def _llama3_frequency(frequency: float, scaling: RopeScaling) -> float:
    """Long waves are stretched, short ones kept, those between blended by how often they fit the trained context."""
    turns = scaling.original_max_position * frequency / (2.0 * math.pi)
    if turns > scaling.high_freq_factor:
        return frequency
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1.0 - kept) * frequency / scaling.factor + kept * frequency


def _yarn_frequencies(plain: tuple[float, ...], rope: RopeSpec, scaling: RopeScaling) -> tuple[float, ...]:
    def pair_that_turns(count: float) -> float:
        wavelength = scaling.original_max_position / (count * 2.0 * math.pi)
        return rope.dim * math.log(wavelength) / (2.0 * math.log(rope.theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    width = last - first if last != first else 0.001
    stretched = (min(max((j - first) / width, 0.0), 1.0) for j in range(len(plain)))
    return tuple(f / scaling.factor * s + f * (1.0 - s) for f, s in zip(plain, stretched, strict=True))


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0
