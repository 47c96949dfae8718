"""Kernels run in Triton's interpreter here, which tests/conftest.py asks for."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def placeless_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products whose rows do not depend on their place in a tile; those of the interpreter's BLAS do."""
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = (a.data[:, :, None] * b.data[None]).sum(1, dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
