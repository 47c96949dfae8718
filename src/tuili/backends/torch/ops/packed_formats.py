"""The packed formats, and how weights become planes: GGUF groups are taken apart at load, FP8 made from floats.

A format of another kind of file joins with a descriptor here and a function that fills its planes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuili.backends.torch.ops.packed import LANES, PackedFormat, PackedWeight
from tuili.quant import groups as g
from tuili.quant.format import Bytes
from tuili.quant.format import Tensor as FileTensor

Array = NDArray[np.generic]
Split = Callable[[Bytes], dict[str, Array]]  # groups [n, group_bytes] -> planes [n, ...]; levels one to a byte

FP8_TOP = 448.0  # the largest e4m3


def _planes_4_0(groups: Bytes) -> dict[str, Array]:
    return {"levels": g.unpack_nibbles(groups[:, 2:]), "scales": _half(groups, 0)}


def _planes_4_1(groups: Bytes) -> dict[str, Array]:
    return {"levels": g.unpack_nibbles(groups[:, 4:]), "scales": _half(groups, 0), "minimums": _half(groups, 2)}


def _planes_5_0(groups: Bytes) -> dict[str, Array]:
    levels = g.unpack_nibbles(groups[:, 6:]) | g.unpack_bits(groups[:, 2:6]) << 4
    return {"levels": levels, "scales": _half(groups, 0)}


def _planes_8_0(groups: Bytes) -> dict[str, Array]:
    return {"levels": groups[:, 2:].view(np.int8), "scales": _half(groups, 0)}


def _shared_planes(groups: Bytes) -> dict[str, Array]:
    scales, mins = g.unpack_scales_and_mins(groups[:, 4:16])
    shares = {"scales": scales.astype(np.uint8), "minimums": mins.astype(np.uint8)}
    return {**shares, "factors": _half(groups, 0), "min_factors": _half(groups, 2)}


def _planes_4_k(groups: Bytes) -> dict[str, Array]:
    levels = g.unpack_nibbles(groups[:, 16:].reshape(-1, 32)).reshape(-1, 256)
    return {"levels": levels, **_shared_planes(groups)}


def _planes_5_k(groups: Bytes) -> dict[str, Array]:
    fifth_bits = g.unpack_bits(groups[:, 16:48]).reshape(-1, 32, 8).swapaxes(1, 2).reshape(-1, 256)
    levels = g.unpack_nibbles(groups[:, 48:].reshape(-1, 32)).reshape(-1, 256)
    return {"levels": levels | fifth_bits << 4, **_shared_planes(groups)}


def _planes_6_k(groups: Bytes) -> dict[str, Array]:
    nibbles = g.unpack_nibbles(groups[:, :128].reshape(-1, 64)).reshape(-1, 256)
    levels = nibbles | g.unpack_pairs(groups[:, 128:192]) << 4
    return {"levels": levels, "scales": groups[:, 192:208].view(np.int8), "factors": _half(groups, 208)}


def _half(groups: Bytes, offset: int) -> Array:
    return np.ascontiguousarray(groups[:, offset : offset + 2]).view("<f2")


Q4_0 = PackedFormat(name="Q4_0", levels="nibbles", group_size=32, zero=8)
Q4_1 = PackedFormat(name="Q4_1", levels="nibbles", group_size=32, min_sign=1)
Q5_0 = PackedFormat(name="Q5_0", levels="nibbles", group_size=32, high_bits=1, zero=16)
Q4_K = PackedFormat(name="Q4_K", levels="nibbles", group_size=32, factor_groups=8, min_sign=-1)
Q5_K = PackedFormat(name="Q5_K", levels="nibbles", group_size=32, high_bits=1, factor_groups=8, min_sign=-1)
Q6_K = PackedFormat(name="Q6_K", levels="nibbles", group_size=16, high_bits=2, zero=32, factor_groups=16)
Q8_0 = PackedFormat(name="Q8_0", levels="int8", group_size=32)
FP8_ROW = PackedFormat(name="FP8 e4m3, a scale per row", levels="float8", group_size=0)
FP8_BLOCK = PackedFormat(name="FP8 e4m3, a scale per 128", levels="float8", group_size=128)

_SPLITS: Mapping[str, tuple[PackedFormat, Split]] = MappingProxyType(
    {
        "Q4_0": (Q4_0, _planes_4_0),
        "Q4_1": (Q4_1, _planes_4_1),
        "Q5_0": (Q5_0, _planes_5_0),
        "Q4_K": (Q4_K, _planes_4_k),
        "Q5_K": (Q5_K, _planes_5_k),
        "Q6_K": (Q6_K, _planes_6_k),
        "Q8_0": (Q8_0, _planes_8_0),
    }
)
PACKABLE = frozenset(_SPLITS)  # names of file formats that stay packed


def pack(tensor: FileTensor) -> PackedWeight:
    """The planes of a matrix [N, K] whose format is in PACKABLE, on the CPU. Nothing is rounded."""
    layout, split = _SPLITS[tensor.format.name]
    num_rows, num_cols = tensor.shape
    planes = split(tensor.data.reshape(-1, tensor.format.group_bytes))
    named = {name: plane.reshape(num_rows, -1) for name, plane in planes.items()}
    return _assembled(layout, (num_rows, num_cols), named)


def _assembled(layout: PackedFormat, shape: tuple[int, int], planes: dict[str, Array]) -> PackedWeight:
    """Packs levels that are one to a byte, pads rows to whole spans and makes tensors."""
    padded = -(-shape[1] // layout.span) * layout.span
    planes["levels"] = _padded(planes["levels"], padded)
    for name in ("scales", "minimums"):
        if name in planes and layout.group_size:
            planes[name] = _padded(planes[name], padded // layout.group_size)
    if layout.levels == "nibbles":
        levels = planes["levels"].astype(np.uint8)
        planes["levels"] = _fields(levels & np.uint8(15), 4)
        if layout.high_bits:
            planes["high"] = _fields(levels >> np.uint8(4), layout.high_bits)
    # A copy of our own: the file is mapped, and may shrink.
    tensors = {name: torch.from_numpy(np.array(plane, order="C")) for name, plane in planes.items()}
    return PackedWeight(layout, shape, **tensors)


def _padded(plane: Array, width: int) -> Array:
    return plane if plane.shape[1] == width else np.pad(plane, ((0, 0), (0, width - plane.shape[1])))


def _fields(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Values of `bits` bits [N, padded K] into bytes, in the order that PackedFormat tells."""
    lanes = values.reshape(values.shape[0], -1, 8 // bits, LANES)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(lanes << shifts, axis=2)
    return packed.reshape(values.shape[0], -1)


def pack_fp8(weight: Tensor, layout: PackedFormat = FP8_ROW) -> PackedWeight:
    """e4m3 levels with float32 scales of a float matrix [N, K], wherever it lies: each group's largest becomes 448.

    Raises ValueError for a matrix that is not finite.
    """
    num_rows, num_cols = weight.shape
    if not bool(weight.isfinite().all()):
        raise ValueError("a weight is not finite, so FP8 has no scale for it")
    padded = -(-num_cols // (layout.group_size or LANES)) * (layout.group_size or LANES)
    values = torch.nn.functional.pad(weight.float(), (0, padded - num_cols))
    groups = values.view(num_rows, -1, layout.group_size or padded)
    scales = groups.abs().amax(-1) / FP8_TOP
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    levels = (groups * inverse[:, :, None]).clamp(-FP8_TOP, FP8_TOP).to(torch.float8_e4m3fn)
    return PackedWeight(layout, (num_rows, num_cols), levels.view(num_rows, padded), scales)
