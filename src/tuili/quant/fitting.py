"""Scales that lose little: a grid of candidates, least squares for each, the best by weighted squared error.

Knows groups of numbers; no byte layouts. The native quantizers compute the same, operation for operation, so sums run
over a group's members in order and nothing is contracted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuili.quant.format import Bytes, Floats

TINY = np.float32(1e-30)  # of denominators: below it they count as zero, as a reciprocal could overflow
SMALLEST = np.float32(2.0**-30)  # members below it count as zero: float16 scales do not reach them, squares stay normal
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


def ordered_sum(terms: Iterable[Floats]) -> Floats:
    """The sum of arrays, from the first to the last."""
    total: Floats | None = None
    for term in terms:
        total = term if total is None else total + term
    assert total is not None
    return total


def columns(groups: Floats) -> Floats:
    """[n, size] -> [size, n], so that members of all groups lie side by side; those below SMALLEST become 0."""
    return np.where(np.abs(groups.T) < SMALLEST, _ZERO, groups.T)


def quotient(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, and 0 where the denominator is not above TINY in magnitude."""
    is_usable = np.abs(denominator) > TINY
    return np.where(is_usable, numerator / np.where(is_usable, denominator, _ONE), _ZERO)


def peak_of(x: Floats) -> Floats:
    """The value of largest magnitude of each group, the first on a tie; x is [size, n]."""
    peak: Floats = x[0]
    for member in x[1:]:
        peak = np.where(np.abs(member) > np.abs(peak), member, peak)
    return peak


def fit_signed(x: Floats, top: int) -> Floats:
    """Scales [n] for levels -top .. top - 1 of x [size, n]. Squares weigh their members."""
    inverse_peak = quotient(np.ones_like(x[0]), peak_of(x))
    scale: Floats = np.zeros_like(x[0])
    best = scale
    for step in range(-9, 10):
        inverse = -(np.float32(top) + np.float32(0.1) * np.float32(step)) * inverse_peak
        levels = np.minimum(np.maximum(np.rint(inverse * x), np.float32(-top)), np.float32(top - 1))
        weighted = x * x * levels
        products, squares = ordered_sum(weighted * x), ordered_sum(weighted * levels)
        found = quotient(products, squares)
        gain = products * found  # of squared error, over levels of zero
        scale, best = np.where(gain > best, found, scale), np.maximum(gain, best)
    return scale


def fit_with_min(x: Floats, top: int, first: float, count: int) -> tuple[Floats, Floats]:
    """Scales and minimums >= 0 [n] for weights scale * level - minimum with levels 0 .. top of x [size, n].

    `count` candidates spread the range over top + first, top + first + 0.1, ... levels.
    """
    size = np.float32(len(x))
    spread = np.sqrt(ordered_sum(x * x) / size)
    weights = spread + np.abs(x)
    low, high = np.minimum(x.min(axis=0), _ZERO), x.max(axis=0)
    inverse_range = quotient(np.ones_like(low), high - low)
    sum_w, sum_wx, sum_wxx = (ordered_sum(terms) for terms in (weights, weights * x, weights * x * x))
    scale, minimum, best = (high - low) / np.float32(top), _ZERO - low, np.full_like(low, np.inf)
    for step in range(count):
        steps = np.float32(top) + np.float32(first) + np.float32(0.1) * np.float32(step)
        levels = np.minimum(np.maximum(np.rint(steps * inverse_range * (x - low)), _ZERO), np.float32(top))
        weighted = weights * levels
        sum_wl, sum_wll, sum_wlx = (ordered_sum(terms) for terms in (weighted, weighted * levels, weighted * x))
        determinant = sum_w * sum_wll - sum_wl * sum_wl
        s = quotient(sum_w * sum_wlx - sum_wx * sum_wl, determinant)
        m = quotient(sum_wll * sum_wx - sum_wl * sum_wlx, determinant)
        s, m = np.where(m > _ZERO, quotient(sum_wlx, sum_wll), s), np.minimum(m, _ZERO)
        error = sum_wxx + s * (s * sum_wll - _TWO * sum_wlx) + m * (m * sum_w + _TWO * (s * sum_wl - sum_wx))
        is_better = (s > _ZERO) & (error < best)
        scale, minimum = np.where(is_better, s, scale), np.where(is_better, _ZERO - m, minimum)
        best = np.where(is_better, error, best)
    return scale, minimum


def fit_uneven(x: Floats, values: Floats) -> Floats:
    """Scales [n] for levels out of ascending `values`, the first of which is the farthest from zero; x is [size, n]."""
    inverse_peak = quotient(np.ones_like(x[0]), peak_of(x))
    scale: Floats = np.zeros_like(x[0])
    best = scale
    for step in range(-7, 8):
        inverse = (values[0] + np.float32(step)) * inverse_peak
        levels = values[nearest(inverse * x, values)]
        weighted = x * x * levels
        products, squares = ordered_sum(weighted * x), ordered_sum(weighted * levels)
        found = quotient(products, squares)
        gain = products * found
        scale, best = np.where(gain > best, found, scale), np.maximum(gain, best)
    return scale


def nearest(x: Floats, values: Floats) -> NDArray[np.intp]:
    """Indices of what is nearest in ascending `values`, the lower one when x is halfway."""
    return np.searchsorted((values[:-1] + values[1:]) / _TWO, x, side="left")


def uneven_levels_of(x: Floats, scale: Floats, values: Floats) -> Bytes:
    """Indices of the values nearest to x / scale, or to 0 where the scale is 0. x is [size, n], scale [n]."""
    return nearest(quotient(x, np.broadcast_to(scale, x.shape)), values).astype(np.uint8)


def levels_of(x: Floats, scale: Floats, low: int, high: int) -> Bytes:
    """round(x / scale) within [low, high], less `low`; that of 0 where the scale is 0. x is [size, n], scale [n]."""
    rounded = np.rint(quotient(x, np.broadcast_to(scale, x.shape)))
    return (np.clip(rounded, low, high) - np.float32(low)).astype(np.uint8)


def share_scale(scales: Floats, top: int) -> tuple[Floats, Floats]:
    """Scales >= 0 [n, k] -> the float16 factor of each row [n, 1] and integers 0 .. top [n, k]."""
    largest = scales.max(axis=1, keepdims=True)
    factor = _as_half(largest / np.float32(top))
    shares = np.minimum(np.rint(quotient(np.float32(top) * np.ones_like(largest), largest) * scales), np.float32(top))
    return factor, shares


def share_signed_scale(scales: Floats, top: int) -> tuple[Floats, Floats]:
    """Scales of any sign [n, k] -> the float16 factor [n, 1] and integers -top .. top - 1 [n, k], -top for the peak."""
    peak = peak_of(np.ascontiguousarray(scales.T))[:, None]
    factor = _as_half(peak / np.float32(-top))
    inverse = quotient(np.full_like(peak, -top), peak)
    return factor, np.minimum(np.maximum(np.rint(inverse * scales), np.float32(-top)), np.float32(top - 1))


def _as_half(values: Floats) -> Floats:
    """Rounded to float16; infinite beyond its range."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class SharedFit:
    """Super groups [n]: levels uint8 [n, 256], integer scales and minimums [n, k] under float16 factors [n, 1]."""

    levels: Bytes
    scale_factor: Floats
    scales: Floats
    min_factor: Floats
    mins: Floats


def fit_shared_with_min(
    weights: Floats, *, size: int, top: int, first: float, candidates: int, share_top: int
) -> SharedFit:
    """weights [n, 256] in groups of `size`; scales and minimums are integers 0 .. share_top."""
    x = columns(weights.reshape(-1, size))
    scales, mins = fit_with_min(x, top, first, candidates)
    scale_factor, scales = share_scale(scales.reshape(len(weights), -1), share_top)
    min_factor, mins = share_scale(mins.reshape(len(weights), -1), share_top)
    levels = levels_of(x + (min_factor * mins).reshape(-1), (scale_factor * scales).reshape(-1), 0, top)
    return SharedFit(levels.T.reshape(weights.shape), scale_factor, scales, min_factor, mins)


def fit_shared_signed(weights: Floats, *, top: int, share_top: int) -> SharedFit:
    """weights [n, 256] in groups of 16; levels are above -top, scales integers -share_top .. share_top - 1."""
    x = columns(weights.reshape(-1, 16))
    scale_factor, scales = share_signed_scale(fit_signed(x, top).reshape(len(weights), -1), share_top)
    levels = levels_of(x, (scale_factor * scales).reshape(-1), -top, top - 1)
    nothing = np.zeros_like(scale_factor)
    return SharedFit(levels.T.reshape(weights.shape), scale_factor, scales, nothing, nothing)
