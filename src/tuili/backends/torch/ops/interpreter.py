"""Triton's interpreter, which runs kernels in NumPy where TRITON_INTERPRET=1: for tests on machines without a GPU."""

from __future__ import annotations

from typing import Any

import triton


def is_interpreting() -> bool:
    return bool(triton.knobs.runtime.interpret)


def mend_interpreter() -> None:
    """Lets a scalar bound a loop: the interpreter keeps scalars in arrays of one element, of which NumPy from 2.4 on
    makes no number unasked.
    """
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor
    if getattr(original, "is_mended", False):
        return

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch.is_mended = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patch
