"""What is asked of a GPU that is not there: the second of two, its memory, its instructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Work, greedy
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch import backend as backend_module
from tuili.backends.torch import rows as rows_module
from tuili.backends.torch.devices import check_cache_dtype, current, release_memory, warn_of_tf32
from tuili.backends.torch.memory import device_memory
from tuili.errors import DeviceFailureError, InvalidRequestError

SECOND = torch.device("cuda", 1)
OPTIONS = BackendOptions(max_model_len=64, device="cpu")


def test_the_device_is_made_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(device))
    with current(SECOND) as device:
        assert device == SECOND


def test_all_that_computes_does_it_on_the_backends_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events and Triton's launches go to the thread's device, which is the first GPU unless told."""
    inside: list[bool] = []

    @contextmanager
    def watched(device: torch.device) -> Iterator[None]:
        inside.append(True)
        yield
        inside.append(False)

    def checked(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            assert inside
            assert inside[-1]
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(backend_module, "current", watched)
    for name in ("build_model", "upload_batch", "run_rows", "RunningStep", "choose_tokens"):
        monkeypatch.setattr(backend_module, name, checked(getattr(backend_module, name)))
    spec = decoder()
    backend = load_backend("torch", spec, random_weights(spec), OPTIONS)
    driver = Driver(backend)
    driver.step([Work(driver.text(), [1, 2, 3])])
    backend.sample(np.zeros((1, 101), np.float32), greedy(1), None)
    assert inside == [True, False] * 4  # load, allocate_cache, execute, sample


def test_memory_is_counted_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def told(name: str, value: Any) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda *device: (asked.append((name, *device)), value)[1])

    for name, value in (("mem_get_info", (7, 10)), ("memory_reserved", 3), ("max_memory_reserved", 5)):
        told(name, value)
    for name in ("empty_cache", "synchronize", "reset_peak_memory_stats"):
        told(name, None)
    memory = device_memory(SECOND)
    assert memory is not None
    memory.reset_peak()
    assert asked == [("synchronize", SECOND), ("empty_cache",), ("reset_peak_memory_stats", SECOND)]
    del asked[:]
    found = (memory.total_bytes(), memory.free_bytes(), memory.reserved_bytes(), memory.peak_bytes())
    assert found == (10, 7, 3, 5)
    assert {device for _, device in asked} == {SECOND}
    assert device_memory(torch.device("cpu")) is None
    assert device_memory(torch.device("mps")) is None  # the host's


def test_an_fp8_cache_is_refused_where_the_gpu_has_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(InvalidRequestError, match=r"kv_cache_dtype must be auto, bfloat16 or int8 on a GPU .* 8\.9"):
        check_cache_dtype("fp8", SECOND)
    check_cache_dtype("int8", SECOND)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_cache_dtype("fp8", SECOND)


FAILURES = [
    torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
]


@pytest.mark.parametrize("error", FAILURES, ids=range(len(FAILURES)))
def test_a_device_that_fails_says_what_helps(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    spec = decoder()
    backend = load_backend("torch", spec, random_weights(spec), OPTIONS)
    driver = Driver(backend)
    handle = backend.execute(driver.batch([Work(driver.text(), [1, 2])]))
    first_line = str(error).partition("\n")[0]
    message = f"cpu failed: {first_line}. This process can compute nothing there any more: load the model in a new"
    with monkeypatch.context() as patch:
        patch.setattr(rows_module.Download, "arrays", fail)
        with pytest.raises(DeviceFailureError) as caught:
            handle.result()
        assert message in str(caught.value)
    monkeypatch.setattr(backend_module, "run_rows", fail)
    monkeypatch.setattr(backend_module, "choose_tokens", fail)
    with pytest.raises(DeviceFailureError) as caught:
        driver.step([Work(driver.text(), [1, 2])])
    assert message in str(caught.value)
    assert caught.value.__cause__ is error
    with pytest.raises(DeviceFailureError):
        backend.sample(np.zeros((1, 101), np.float32), greedy(1), None)


def test_other_errors_are_nobodys_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    spec = decoder()
    driver = Driver(load_backend("torch", spec, random_weights(spec), OPTIONS))
    monkeypatch.setattr(backend_module, "run_rows", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        driver.step([Work(driver.text(), [1, 2])])


def test_a_device_that_failed_is_left_without_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FAILURES[0]

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    release_memory(SECOND)


@pytest.mark.parametrize(
    ("device", "dtype", "is_told"),
    [("cuda", torch.float32, True), ("cuda", torch.bfloat16, False), ("cpu", torch.float32, False)],
)
def test_rounded_products_are_told(
    device: str, dtype: torch.dtype, is_told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for matmul in (SimpleNamespace(fp32_precision="tf32"), SimpleNamespace(allow_tf32=True)):
        monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
        caplog.clear()
        warn_of_tf32(torch.device(device), dtype)
        assert ("rounded to TF32" in caplog.text) == is_told
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="ieee"))
    caplog.clear()
    warn_of_tf32(torch.device(device), dtype)
    assert not caplog.text
