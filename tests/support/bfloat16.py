"""Numbers rounded to bfloat16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rounded_to_bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """To nearest even, as float32; not for NaN."""
    u = np.ascontiguousarray(x).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
