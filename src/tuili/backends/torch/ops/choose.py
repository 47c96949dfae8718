"""Which operations a device gets. Knows devices, installed packages and one variable; no mathematics."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping

import torch

from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.ops.protocol import Ops
from tuili.errors import InvalidRequestError, UnsupportedModelError

VARIABLE = "TUILI_TORCH_OPS"  # plain or triton; unset: by the device
_MIN_CAPABILITY = (8, 0)  # bfloat16 matrix instructions

_log = logging.getLogger(__name__)


def choose_ops(device: torch.device, deterministic: bool = False, environment: Mapping[str, str] | None = None) -> Ops:
    """Triton's kernels on CUDA from capability 8.0 on, where triton is installed; plain torch elsewhere, with a warning
    where that wastes a GPU.

    deterministic: rows do not depend on their company (TritonOps says how); plain torch promises that nowhere. Raises
    InvalidRequestError for a value of VARIABLE that is neither, UnsupportedModelError for kernels that cannot be had.
    """
    wanted = (os.environ if environment is None else environment).get(VARIABLE, "")
    if wanted not in ("", "plain", "triton"):
        raise InvalidRequestError(f"{VARIABLE}={wanted}; allowed: plain, triton, or unset")
    lack = _what_kernels_lack(device)
    if wanted == "triton" or deterministic:
        if lack is not None:
            raise UnsupportedModelError(f"Triton's kernels, which this setting needs, do not run here: {lack}")
        return _triton_ops(device, deterministic)
    if wanted == "plain" or (lack is not None and device.type != "cuda"):
        return PlainOps()
    if lack is not None:
        _log.warning("slow: attention uses plain torch, and no weight stays packed, because %s", lack)
        return PlainOps()
    # The interpreter is for tests, which ask for it by name.
    return _triton_ops(device, deterministic) if device.type == "cuda" else PlainOps()


def _triton_ops(device: torch.device, deterministic: bool) -> Ops:
    from tuili.backends.torch.ops.triton_ops import TritonOps

    return TritonOps(device, deterministic)


def _what_kernels_lack(device: torch.device) -> str | None:
    """In words, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install 'tuili[torch]')"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _MIN_CAPABILITY:
            return f"this GPU's compute capability is {capability[0]}.{capability[1]}; needed: 8.0"
        return None
    from tuili.backends.torch.ops.interpreter import is_interpreting

    return (
        None if is_interpreting() else f"device {device.type} runs no Triton kernels (TRITON_INTERPRET=1 emulates them)"
    )
