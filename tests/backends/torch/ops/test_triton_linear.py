"""Products with packed weights against unpacking and multiplying, for every format and every kernel."""

from __future__ import annotations

import pytest
import torch

from tuili.backends.torch.ops import FP8_BLOCK, FP8_ROW, PACKABLE, DenseWeight, PackedWeight, pack, pack_fp8, unpack
from tuili.backends.torch.ops.plain import PlainOps
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor

pytest.importorskip("triton")

from tuili.backends.torch.ops import triton_linear
from tuili.backends.torch.ops.triton_ops import TritonOps

CPU = torch.device("cpu")
PLAIN, FAST, DETERMINISTIC = PlainOps(), TritonOps(CPU, False), TritonOps(CPU, True)
NAMES = [*sorted(PACKABLE), FP8_ROW.name, FP8_BLOCK.name]
NUM_ROWS = 19


def weight_of(name: str) -> PackedWeight:
    """A shape that no tile divides: the last rows and the last runs are partly padding."""
    layouts = {layout.name: layout for layout in (FP8_ROW, FP8_BLOCK)}
    cols = 256 if name.endswith("_K") else 160
    values = torch.randn(NUM_ROWS, cols, generator=torch.manual_seed(0))
    if name in layouts:
        return pack_fp8(values, layouts[name])
    layout = BY_NAME[name]
    return pack(Tensor(layout, (NUM_ROWS, cols), layout.quantize(values.numpy())))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_kernels_unpack_to_the_bit(name: str) -> None:
    weight = weight_of(name)
    assert torch.equal(triton_linear.unpacked(weight, torch.float32), unpack(weight))


@pytest.mark.parametrize("name", NAMES)
def test_one_row_and_several(name: str) -> None:
    weight = weight_of(name)
    x = torch.randn(5, weight.shape[1] + 9, generator=torch.manual_seed(1))[:, : weight.shape[1]]
    bias = torch.randn(NUM_ROWS)
    expected = PLAIN.linear(x, weight, bias)
    assert relative(FAST.linear(x[:1], weight, bias), expected[:1]) < 2e-6
    assert relative(FAST.linear(x, weight), expected - bias) < 2e-6


def test_long_rows_take_several_steps() -> None:
    layout = BY_NAME["Q4_0"]
    values = torch.randn(3, 4192, generator=torch.manual_seed(0))
    weight = pack(Tensor(layout, (3, 4192), layout.quantize(values.numpy())))
    x = torch.randn(2, 4192, generator=torch.manual_seed(1))
    expected = PLAIN.linear(x, weight)
    for num_tokens in (1, 2):
        assert relative(FAST.linear(x[:num_tokens], weight), expected[:num_tokens]) < 2e-6


@pytest.mark.parametrize("num_tokens", [17, 65, 257])
def test_every_number_of_tokens_has_its_kernel(num_tokens: int) -> None:
    weight = weight_of("Q4_1")
    x = torch.randn(num_tokens, weight.shape[1], generator=torch.manual_seed(1)).half()
    assert relative(FAST.linear(x, weight), PLAIN.linear(x.float(), weight)) < 2e-3


@pytest.mark.usefixtures("placeless_dot")
@pytest.mark.parametrize("name", ["Q5_K", FP8_ROW.name, "dense"])
def test_deterministic_rows_do_not_know_how_many_they_are(name: str) -> None:
    weight = DenseWeight(torch.randn(NUM_ROWS, 96)) if name == "dense" else weight_of(name)
    x = torch.randn(40, weight.shape[1], generator=torch.manual_seed(1))
    bias = torch.randn(NUM_ROWS)
    together = DETERMINISTIC.linear(x, weight, bias)
    assert relative(together, PLAIN.linear(x, weight, bias)) < 2e-6
    assert torch.equal(DETERMINISTIC.linear(x[33:34], weight, bias), together[33:34])


@pytest.mark.parametrize("name", ["Q4_K", "dense"])
@pytest.mark.parametrize("num_tokens", [1, 5, 257])
def test_float32_sums_of_half_precision(name: str, num_tokens: int) -> None:
    weight = DenseWeight(torch.randn(NUM_ROWS, 96).half()) if name == "dense" else weight_of(name)
    x = torch.randn(num_tokens, weight.weight.shape[1] if name == "dense" else weight.shape[1]).half()
    expected = PLAIN.linear(x, weight, None, torch.float32)
    for ops in (FAST, DETERMINISTIC):
        found = ops.linear(x, weight, None, torch.float32)
        assert found.dtype == torch.float32
        assert relative(found, expected) < 5e-4  # a packed weight's products round it to half precision
