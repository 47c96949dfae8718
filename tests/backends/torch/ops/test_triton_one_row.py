"""Products of one row with what stands around them, against plain torch in several steps."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tuili.backends.torch.ops import DenseWeight, RowEntry
from tuili.backends.torch.ops.plain import PlainOps
from tuili.models.spec import Activation

pytest.importorskip("triton")

from tuili.backends.torch.ops.triton_one_row import TritonRowProducts
from tuili.backends.torch.ops.triton_ops import TritonOps

CPU = torch.device("cpu")
PLAIN, PRODUCTS = PlainOps(), TritonRowProducts(num_processors=1)
BOUNDS = {torch.float32: 2e-6, torch.float16: 3e-3}
SHAPES = [(19, 100), (8, 64), (6, 2500), (1, 33)]  # no tile divides the first; the third takes several pieces


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed + sum(shape))).to(dtype)


def widened(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.float()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_alone(dtype: torch.dtype, shape: tuple[int, int], has_bias: bool) -> None:
    x, weight = randn(1, shape[1], dtype=dtype), randn(*shape, dtype=dtype)
    bias = randn(shape[0], dtype=dtype) if has_bias else None
    found, same = PRODUCTS(x, weight, bias)
    assert same is x
    assert relative(found, PLAIN.linear(x.float(), DenseWeight(weight.float()), widened(bias))) < BOUNDS[dtype]
    wide, _ = PRODUCTS(x, weight, bias, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert relative(wide, PLAIN.linear(x.float(), DenseWeight(weight.float()), widened(bias))) < 2e-6


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_sum_and_norm_before_it(dtype: torch.dtype, shape: tuple[int, int], scale: float | None) -> None:
    x, residual = randn(1, shape[1], dtype=dtype), randn(1, shape[1], dtype=dtype, seed=9)
    weight, gain, bias = randn(*shape, dtype=dtype), randn(shape[1], dtype=torch.float32), randn(shape[0], dtype=dtype)
    entry = RowEntry(gain, 1e-5) if scale is None else RowEntry(gain, 1e-5, residual, scale)
    found, total = PRODUCTS(x, weight, bias, entry)
    if scale is None:
        entered, expected_total = PLAIN.norm(x.float(), gain, None, 1e-5, "rms"), x
    else:
        _, expected_total = PLAIN.add_and_norm(x, residual, gain, None, 1e-5, "rms", scale)
        entered = PLAIN.norm(expected_total.float(), gain, None, 1e-5, "rms")
    assert relative(total, expected_total) < BOUNDS[dtype]
    assert relative(found, PLAIN.linear(entered, DenseWeight(weight.float()), widened(bias))) < BOUNDS[dtype]


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("has_bias", [False, True])
def test_gates(activation: Activation, has_bias: bool) -> None:
    x, weight, gain = (randn(*s, dtype=torch.float32) for s in ((1, 100), (38, 100), (100,)))
    weight *= 0.1
    bias = randn(38, dtype=torch.float32) if has_bias else None
    found, _ = PRODUCTS(x, weight, bias, RowEntry(gain, 1e-5), activation)
    both = PLAIN.linear(PLAIN.norm(x, gain, None, 1e-5, "rms"), DenseWeight(weight), bias)
    assert relative(found, PLAIN.activate(both[:, :19], both[:, 19:], activation)) < 5e-6


def test_matrices_whose_rows_are_not_read_in_one_go_are_not_taken() -> None:
    assert PRODUCTS.takes(torch.empty(4, 16384, dtype=torch.bfloat16))
    assert not PRODUCTS.takes(torch.empty(4, 16385, dtype=torch.bfloat16))
    assert not PRODUCTS.takes(torch.empty(16, 4).T)


def test_deterministic_operations_have_none() -> None:
    assert TritonOps(CPU, True).row_products is None
    assert PLAIN.row_products is None
