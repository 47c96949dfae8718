"""Byte layouts that several formats share: half-precision scales, nibbles, bit planes, runs of groups.

Knows bytes of quantized groups; no format's constants, no files. Layouts as defined by ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tuili.quant.format import Bytes, Floats, QuantFormat

UNEVEN_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # of IQ4_NL and IQ4_XS: denser near zero, as weights are

_PAIR_SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_RUN = 4096  # groups decoded at once, so that intermediates stay in cache

Decode = Callable[[Bytes], Floats]  # uint8 [n, group_bytes] -> float32 [n, group_size]
Encode = Callable[[Floats], Bytes]  # float32 [n, group_size] -> uint8 [n, group_bytes]


def grouped_format(
    *, name: str, gguf_id: int, group_size: int, group_bytes: int, decode: Decode, encode: Encode
) -> QuantFormat:
    """A format whose rows are groups side by side, from functions that treat groups one by one."""

    def dequantize(data: Bytes) -> Floats:
        groups = data.reshape(-1, group_bytes)
        weights = np.empty((groups.shape[0], group_size), np.float32)
        # Hostile scales (inf, NaN) give inf and NaN weights, as the definition says, without a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, groups.shape[0], _RUN):
                weights[start : start + _RUN] = decode(groups[start : start + _RUN])
        return weights.reshape(*data.shape[:-1], data.shape[-1] // group_bytes * group_size)

    def quantize(weights: Floats) -> Bytes:
        groups = np.ascontiguousarray(weights, np.float32).reshape(-1, group_size)
        return encode(groups).reshape(*weights.shape[:-1], weights.shape[-1] // group_size * group_bytes)

    return QuantFormat(
        name=name,
        gguf_id=gguf_id,
        group_size=group_size,
        group_bytes=group_bytes,
        dequantize=dequantize,
        quantize=quantize,
    )


def load_half(groups: Bytes, offset: int) -> Floats:
    """The float16 at byte `offset` of each group: float32 [n, 1]."""
    return np.ascontiguousarray(groups[:, offset : offset + 2]).view("<f2").astype(np.float32)


def store_half(values: Floats) -> Bytes:
    """float32 [n, 1], within float16's range -> its two bytes [n, 2], rounded to nearest even."""
    return values.astype("<f2").view(np.uint8)


def unpack_nibbles(packed: Bytes) -> Bytes:
    """uint8 [n, k] -> [n, 2 k]: all low halves, then all high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def pack_nibbles(values: Bytes) -> Bytes:
    """The inverse of unpack_nibbles for values of at most 15: uint8 [n, 2 k] -> [n, k]."""
    half = values.shape[1] // 2
    return values[:, :half] | values[:, half:] << np.uint8(4)


def unpack_pairs(packed: Bytes) -> Bytes:
    """uint8 [n, 32 k] -> 0..3 [n, 128 k]: of each 32 bytes all lowest bit pairs, then all next ones."""
    pairs: Bytes = packed.reshape(packed.shape[0], -1, 1, 32) >> _PAIR_SHIFTS & np.uint8(3)
    return pairs.reshape(packed.shape[0], -1)


def pack_pairs(values: Bytes) -> Bytes:
    """The inverse of unpack_pairs."""
    pairs: Bytes = np.bitwise_or.reduce(values.reshape(values.shape[0], -1, 4, 32) << _PAIR_SHIFTS, axis=2)
    return pairs.reshape(values.shape[0], -1)


def unpack_bits(packed: Bytes) -> Bytes:
    """uint8 [n, k] -> 0 or 1 [n, 8 k], lowest bit first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def pack_bits(values: Bytes) -> Bytes:
    """The inverse of unpack_bits."""
    return np.packbits(values, axis=1, bitorder="little")


def signed_peak(groups: Floats) -> Floats:
    """The value of largest magnitude of each group, the first on a tie: float32 [n, 1]."""
    return np.take_along_axis(groups, np.abs(groups).argmax(axis=1, keepdims=True), axis=1)


def reciprocal(scales: Floats) -> Floats:
    """1 / scales, and 0 where a scale is zero or too small to have one."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def round_down_to(levels: Floats, highest: int) -> Bytes:
    """Truncates levels to integers in [0, highest]; with a half added before, this rounds."""
    return np.clip(np.trunc(levels), 0, highest).astype(np.uint8)


def pack_scales_and_mins(scales: Floats, mins: Floats) -> Bytes:
    """The inverse of unpack_scales_and_mins: two float32 [n, 8] of integers -> uint8 [n, 12]."""
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    upper = [half[:, :4] | half[:, 4:] >> 4 << 6 for half in (s, m)]
    return np.concatenate([*upper, s[:, 4:] & 0x0F | m[:, 4:] << 4], axis=1)


def unpack_scales_and_mins(packed: Bytes) -> tuple[Floats, Floats]:
    """The 12 bytes of eight 6-bit scales and eight 6-bit minimums in Q4_K and Q5_K: two float32 [n, 8]."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 0x3F, third & 0x0F | first >> 6 << 4], axis=1)
    mins = np.concatenate([second & 0x3F, third >> 4 | second >> 6 << 4], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)
