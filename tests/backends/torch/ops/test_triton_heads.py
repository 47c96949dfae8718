"""Norm, rotation and cache writes in one kernel against the plain twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tuili.backends.torch.ops import HeadConstants, HeadNorm, HeadPositions
from tuili.backends.torch.ops.plain import PlainOps

pytest.importorskip("triton")

from support.attention_cases import empty_cache
from tuili.backends.torch.ops.triton_ops import TritonOps

PLAIN, TRITON = PlainOps(), TritonOps(torch.device("cpu"), False)
SLOTS = torch.tensor([5, -1, 0, 23, 8, 47, 2], dtype=torch.int32)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> bool:
    return torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=0, equal_nan=True)


def _constants(head_dim: int, which: str) -> HeadConstants:
    if which == "none":
        return HeadConstants()
    gain, bias, gains = torch.randn(head_dim), torch.randn(2, head_dim), torch.randn(2, head_dim)
    return HeadConstants(HeadNorm(gain, None, 1e-6, "rms"), HeadNorm(gains, bias, 1e-6, "layer"))


@pytest.mark.parametrize("which", ["none", "both"])
@pytest.mark.parametrize(("head_dim", "half"), [(16, 8), (20, 6), (24, 0)])  # whole, partial, no rotation
def test_heads_are_normed_rotated_and_written(head_dim: int, half: int, which: str) -> None:
    torch.manual_seed(0)
    fused = torch.randn(7, 8, head_dim)
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    positions = HeadPositions(*(torch.randn(2, 7, half) if half else (None, None)), torch.rand(7))
    heads = _constants(head_dim, which)
    expected = PLAIN.rotate(q, k, heads, positions)
    assert all(close(a, b) for a, b in zip(TRITON.rotate(q, k, heads, positions), expected, strict=True))
    found, twin = empty_cache(3, 2, head_dim, torch.float32), empty_cache(3, 2, head_dim, torch.float32)
    assert close(TRITON.rotate_and_write(q, k, v, heads, positions, found, SLOTS), expected[0])
    PLAIN.write_cache(twin, expected[1], v, SLOTS)
    assert close(found.keys, twin.keys)
    assert torch.equal(found.values.nan_to_num(9e9), twin.values.nan_to_num(9e9))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_caches_are_quantized_on_the_way(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 7, 2, 24)
    k[2, 1] = 0
    found, twin = empty_cache(3, 2, 24, dtype), empty_cache(3, 2, 24, dtype)
    TRITON.write_cache(found, k, v, SLOTS)
    PLAIN.write_cache(twin, k, v, SLOTS)
    assert found.key_scales is not None
    assert twin.key_scales is not None
    assert close(found.key_scales, twin.key_scales, 1e-8)
    difference = (found.keys.float() - twin.keys.float()).abs().nan_to_num()
    if dtype == torch.int8:
        assert float(difference.max()) == 0
    else:
        # The interpreter's conversion drops a carry and rounds halves up; a GPU does neither.
        assert float((difference > 0).float().mean()) < 0.1
