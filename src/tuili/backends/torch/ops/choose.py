"""Which operations a device gets. Knows devices and installed packages; no mathematics."""

from __future__ import annotations

import torch

from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.ops.protocol import Ops


def choose_ops(device: torch.device, deterministic: bool = False) -> Ops:
    """Plain operations everywhere."""
    return PlainOps()
