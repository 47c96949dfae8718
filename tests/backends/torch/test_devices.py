"""What is asked of a GPU that is not there: the second of two, its memory, its instructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Work, greedy
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch import backend as backend_module
from tuili.backends.torch.devices import check_cache_dtype, current, free_bytes
from tuili.errors import InvalidRequestError

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


def test_free_memory_is_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("released"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device), (7, 10))[1])
    assert free_bytes(SECOND) == 7
    assert asked == ["released", SECOND]
    assert free_bytes(torch.device("cpu")) is None
    assert free_bytes(torch.device("mps")) is None  # the host's


def test_an_fp8_cache_is_refused_where_the_gpu_has_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(InvalidRequestError, match=r"kv_cache_dtype must be auto, bfloat16 or int8 on a GPU .* 8\.9"):
        check_cache_dtype("fp8", SECOND)
    check_cache_dtype("int8", SECOND)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_cache_dtype("fp8", SECOND)
