"""Kernels over rows against their plain twins, on slices of wider rows."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tuili.backends.torch.ops.plain import PlainOps
from tuili.models.spec import Activation, NormKind

pytest.importorskip("triton")

from tuili.backends.torch.ops.triton_ops import TritonOps

PLAIN, TRITON = PlainOps(), TritonOps(torch.device("cpu"), False)
# exp(2 x) = inf makes the hyperbolic tangent 1, the right limit.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.mark.parametrize("kind", get_args(NormKind))
@pytest.mark.parametrize("has_bias", [False, True])
def test_norms(kind: NormKind, has_bias: bool) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 5, 130)[:, :, :100]
    gain, bias = torch.randn(2, 100)
    arguments = (gain, bias if has_bias else None, 1e-5, kind)
    torch.testing.assert_close(TRITON.norm(x, *arguments), PLAIN.norm(x, *arguments), rtol=1e-5, atol=2e-6)
    for found, expected in zip(
        TRITON.add_and_norm(x, residual, *arguments, 0.3), PLAIN.add_and_norm(x, residual, *arguments, 0.3), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_activations(activation: Activation) -> None:
    torch.manual_seed(0)
    gate, up = (4 * torch.randn(3, 2200)).chunk(2, 1)
    for other in (up, None):
        found, expected = TRITON.activate(gate, other, activation), PLAIN.activate(gate, other, activation)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)


def test_activations_of_large_values_have_limits() -> None:
    gate = torch.tensor([[-1e4, -90.0, 90.0, 1e4]])
    for activation in get_args(Activation):
        found, expected = TRITON.activate(gate, None, activation), PLAIN.activate(gate, None, activation)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logits(softcap: float | None) -> None:
    logits = 20 * torch.randn(3, 1500, generator=torch.manual_seed(0)).half()
    found, expected = TRITON.finish_logits(logits, 0.5, softcap), PLAIN.finish_logits(logits, 0.5, softcap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)
