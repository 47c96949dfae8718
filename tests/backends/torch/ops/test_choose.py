"""Which operations a device gets."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tuili.backends.torch.ops import choose_ops
from tuili.backends.torch.ops.plain import PlainOps
from tuili.errors import InvalidRequestError, UnsupportedModelError

CPU = torch.device("cpu")


def test_a_cpu_gets_plain_torch_unless_kernels_are_asked_for() -> None:
    pytest.importorskip("triton")
    assert isinstance(choose_ops(CPU, environment={}), PlainOps)
    assert isinstance(choose_ops(CPU, environment={"TUILI_TORCH_OPS": "plain"}), PlainOps)
    assert type(choose_ops(CPU, environment={"TUILI_TORCH_OPS": "triton"})).__name__ == "TritonOps"
    assert type(choose_ops(CPU, deterministic=True, environment={})).__name__ == "TritonOps"


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="TUILI_TORCH_OPS=cuda; allowed: plain, triton"):
        choose_ops(CPU, environment={"TUILI_TORCH_OPS": "cuda"})


def test_kernels_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UnsupportedModelError, match="device cpu runs no Triton kernels"):
        choose_ops(CPU, environment={"TUILI_TORCH_OPS": "triton"})


def test_a_gpu_without_triton_is_slow_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose_ops(torch.device("cuda"), environment={}), PlainOps)
    assert "triton is not installed" in caplog.text
    with pytest.raises(UnsupportedModelError, match="not installed"):
        choose_ops(torch.device("cuda"), deterministic=True, environment={})
