"""Parts of weights: put together they are the whole, in its format wherever groups stay whole."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from support.random_models import decoder, layer, quantized, random_weights
from tuili.backends.torch.parallel.cutting import CutWeights, part_of, stored_group_size
from tuili.backends.torch_sizes.division import divide, own_spec
from tuili.models.shapes import tensor_shapes
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor
from tuili.weights.tensor_table import TensorTable


def matrix(name: str) -> Tensor:
    return quantized(BY_NAME[name], np.random.default_rng(1).standard_normal((6, 512), np.float32))


@pytest.mark.parametrize("name", ["F32", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize(("axis", "own"), [(0, range(2, 5)), (1, range(256, 512)), (1, range(256))])
def test_rows_and_whole_groups_keep_their_bytes(name: str, axis: int, own: range) -> None:
    whole = matrix(name)
    part = part_of(whole, axis, own)
    assert part.format is whole.format
    assert part.shape == ((3, 512) if axis == 0 else (6, 256))
    assert part.data.flags.c_contiguous
    cut = np.take(whole.dequantize(), np.arange(own.start, own.stop), axis)
    assert np.array_equal(part.dequantize(), cut)


@pytest.mark.parametrize("own", [range(100), range(100, 300), range(300, 512)])
def test_columns_that_begin_within_a_group_become_floats_and_that_is_told(
    own: range, caplog: pytest.LogCaptureFixture
) -> None:
    whole = matrix("Q4_K")
    with caplog.at_level(logging.INFO, logger="tuili"):
        part = part_of(whole, 1, own)
    assert part.format.name == "F32"
    assert np.array_equal(part.dequantize(), whole.dequantize()[:, own.start : own.stop])
    assert [record.getMessage() for record in caplog.records] == [
        "columns of Q4_K are cut within a group of 256: floats"
    ]


def test_vectors_are_cut_too() -> None:
    whole = quantized(BY_NAME["F32"], np.arange(10, dtype=np.float32))
    part = part_of(whole, 0, range(3, 7))
    assert part.shape == (4,)
    assert part.dequantize().tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("qk_norm", ["head", "each_head", "full"])
def test_all_parts_have_the_shapes_of_their_spec(qk_norm: str) -> None:
    kinds = {"q_bias": True, "k_bias": True, "v_bias": True, "out_bias": True, "sinks": True, "qk_norm": qk_norm}
    spec = decoder(layer(num_heads=6, num_kv_heads=3, **kinds), lm_head_bias=True)
    weights = random_weights(spec)
    for rank in range(2):
        division = divide(spec, rank, 2, lambda name: stored_group_size(weights, name))
        part = CutWeights(weights, spec, division)
        shapes = tensor_shapes(own_spec(spec, division))
        assert {name: part[name].shape for name in part} == shapes
        assert "norm.weight" in part
        assert "other" not in part


def test_formats_are_asked_for_without_making_weights() -> None:
    def make() -> Tensor:
        raise AssertionError("nobody wants values")

    assert stored_group_size(TensorTable({"w": make}, {"w": lambda: "Q4_K"}), "w") == 256
    assert stored_group_size({"w": matrix("Q8_0")}, "w") == 32
