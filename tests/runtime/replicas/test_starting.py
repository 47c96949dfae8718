"""Every replica has devices, or threads, of its own."""

from __future__ import annotations

import pytest

from tuili.errors import InvalidRequestError
from tuili.machine import thread_limits
from tuili.runtime.loading.loading import LoadOptions
from tuili.runtime.replicas.starting import replica_options


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [
        (None, 1, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 2, ["cuda:0", "cuda:2", "cuda:4"]),
        ("cuda:1", 1, ["cuda:1", "cuda:2", "cuda:3"]),
        ("xpu", 1, ["xpu:0", "xpu:1", "xpu:2"]),
    ],
)
def test_gpus_lie_side_by_side(device: str | None, size: int, expected: list[str]) -> None:
    options = LoadOptions(backend="torch", device=device, tensor_parallel_size=size)
    assert [replica_options(options, i, 3).device for i in range(3)] == expected


@pytest.mark.parametrize(("backend", "device"), [("cpu", None), ("torch", "cpu")])
def test_threads_are_shared(backend: str, device: str | None) -> None:
    options = LoadOptions(backend=backend, device=device, num_threads=9)
    assert [replica_options(options, i, 2).num_threads for i in range(2)] == [4, 4]
    assert replica_options(options, 0, 20).num_threads == 1
    unsaid = LoadOptions(backend=backend, device=device)
    assert replica_options(unsaid, 0, 1).num_threads == thread_limits(0).num_threads


def test_all_ranks_of_a_replica_have_gpus() -> None:
    options = LoadOptions(backend="torch", tensor_parallel_size=2, pipeline_parallel_size=3)
    assert [replica_options(options, i, 2).device for i in range(2)] == ["cuda:0", "cuda:6"]


def test_a_device_of_which_there_is_one_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="data_parallel_size must be 1 on mps, of which there is one, got 2"):
        replica_options(LoadOptions(backend="torch", device="mps"), 1, 2)
