"""Integers for grids and blocks, beside Triton's own functions."""

from __future__ import annotations

import pytest

from tuili.backends.torch.ops.rounding import num_parts, power_of_two

triton = pytest.importorskip("triton")


def test_they_are_tritons() -> None:
    assert [power_of_two(n) for n in range(1, 300)] == [triton.next_power_of_2(n) for n in range(1, 300)]
    for count in range(70):
        assert [num_parts(count, size) for size in range(1, 40)] == [triton.cdiv(count, s) for s in range(1, 40)]
