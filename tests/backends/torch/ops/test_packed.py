"""Packed planes against the formats' definitions in NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tuili.backends.torch.ops import FP8_BLOCK, FP8_ROW, PACKABLE, PackedFormat, pack, pack_fp8, unpack
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor


def random_bytes(name: str, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Any bytes are a weight; float16 scales are made finite, so that values can be compared as numbers."""
    layout = BY_NAME[name]
    data = np.random.default_rng(seed).integers(0, 256, (rows, layout.row_bytes(cols)), np.uint8)
    halves = {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0,))
    groups = data.reshape(-1, layout.group_bytes)
    for offset in halves:
        groups[:, offset + 1] &= 0xBF
    return Tensor(layout, (rows, cols), data)


@pytest.mark.parametrize("name", sorted(PACKABLE))
@pytest.mark.parametrize("cols", [256, 1280, 96])
def test_planes_hold_exactly_what_the_file_says(name: str, cols: int) -> None:
    if cols % BY_NAME[name].group_size:
        pytest.skip("rows are whole groups")
    tensor = random_bytes(name, 5, cols)
    found = unpack(pack(tensor)).numpy()
    assert found.shape == (5, cols)
    assert np.array_equal(found, tensor.dequantize())


@pytest.mark.parametrize("name", sorted(PACKABLE))
def test_planes_take_hardly_more_than_the_file(name: str) -> None:
    tensor = random_bytes(name, 16, 1024)
    assert pack(tensor).num_bytes <= tensor.num_bytes * 1.03


@pytest.mark.parametrize("name", sorted(PACKABLE))
def test_plane_rows_are_aligned(name: str) -> None:
    packed = pack(random_bytes(name, 3, 512))
    assert packed.levels.stride(0) % 16 == 0
    assert packed.high is None or packed.high.stride(0) % 16 == 0


def test_rows_are_rows() -> None:
    tensor = random_bytes("Q5_K", 8, 256)
    assert torch.equal(unpack(pack(tensor).rows(2, 5)), unpack(pack(tensor))[2:5])


@pytest.mark.parametrize("layout", [FP8_ROW, FP8_BLOCK])
@pytest.mark.parametrize("cols", [96, 384, 200])
def test_fp8_is_within_its_rounding(layout: PackedFormat, cols: int) -> None:
    weight = torch.randn(6, cols, generator=torch.manual_seed(0)).to(torch.bfloat16)
    weight[2] = 0
    packed = pack_fp8(weight, layout)
    found = unpack(packed)
    assert found.shape == weight.shape
    # Three bits of mantissa: half a unit is 2**-4 of a value, and 2**-10 steps below the smallest normal one.
    step = packed.scales.amax(1, keepdim=True) * 2.0**-10
    assert bool(((found - weight.float()).abs() <= weight.float().abs() * 2.0**-4 + step).all())
    assert bool((found[2] == 0).all())


def test_fp8_refuses_what_has_no_scale() -> None:
    with pytest.raises(ValueError, match="not finite"):
        pack_fp8(torch.tensor([[1.0, float("inf")]]))
