"""Weights on their way: in order, whole, whatever the threads do; and no buffer is filled while it is read."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from support.random_models import quantized
from tuili.backends.torch import staging, weights
from tuili.backends.torch.ops import PACKABLE, pack
from tuili.backends.torch.staging import Staging, in_order
from tuili.backends.torch.weights import WeightReader
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor

CPU = torch.device("cpu")


def test_results_come_in_order_though_work_does_not() -> None:
    """Each even item waits until the odd one after it is done."""
    done = [threading.Event() for _ in range(40)]

    def work(i: int) -> int:
        if i % 2 == 0:
            assert done[i + 1].wait(60)
        done[i].set()
        return i * i

    assert list(in_order(work, range(40))) == [i * i for i in range(40)]


def test_what_a_thread_raises_is_raised() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise ValueError("damaged")
        return i

    with pytest.raises(ValueError, match="damaged"):
        list(in_order(work, range(9)))


def test_buffers_take_turns_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PIECE_BYTES", 64)
    pieces = [np.full((1 + i % 3, 32 + 8 * (i % 7)), i, np.uint8) for i in range(50)]
    stage, places = Staging(CPU), set()
    for piece, found in zip(pieces, stage.through(iter(pieces)), strict=True):
        np.testing.assert_array_equal(found.numpy(), piece.reshape(-1))
        places.add(found.data_ptr())
    assert len(places) < 25


def test_what_the_device_still_reads_is_waited_for() -> None:
    """The event of a buffer's last copy is asked before it is filled again."""
    stage, asked = Staging(CPU), []

    class Event:
        def record(self) -> None:
            asked.append("recorded")

        def synchronize(self) -> None:
            asked.append("asked")

    stage._free.append((torch.empty(64, dtype=torch.uint8), Event()))
    first: Any = stage.through(iter([np.zeros((1, 64), np.uint8)]))
    assert len(list(first)) == 1
    assert asked == ["asked", "recorded"]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q5_1", *sorted({"Q4_K", "Q8_0"} & set(PACKABLE))])
def test_matrices_in_many_pieces_are_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((2, 37, 256), np.float32)
    parts = {f"layers.0.{leaf}.weight": quantized(BY_NAME[name], v) for leaf, v in zip("qk", values, strict=True)}
    monkeypatch.setattr(weights, "PIECE_BYTES", 700)
    shapes = {key: tensor.shape for key, tensor in parts.items()}
    reader = WeightReader(parts, shapes, dtype=torch.float32, device=CPU, keep_packed=True)
    ((_, weight),) = reader.matrices(["layers.0.q", "layers.0.k"])
    both = Tensor(BY_NAME[name], (74, 256), np.concatenate([tensor.data for tensor in parts.values()]))
    assert reader.num_bytes == weight.num_bytes
    if name in PACKABLE:
        assert isinstance(weight, weights.PackedWeight)
        for found, expected in zip(weight.planes(), pack(both).planes(), strict=True):
            assert (found is None) == (expected is None)
            assert found is None or expected is None or torch.equal(found, expected)
    else:
        assert isinstance(weight, weights.DenseWeight)
        np.testing.assert_array_equal(weight.weight.numpy(), both.dequantize())
