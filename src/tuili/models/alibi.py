"""ALiBi's slopes: how fast each head forgets. Knows the published series; no arrays, no models."""

from __future__ import annotations

import math


def alibi_slopes(num_heads: int, scale: float = 1.0) -> tuple[float, ...]:
    """What a head's scores lose per position of distance, times `scale`: a geometric series for powers of two, else
    every other one of the next power's put behind it (Press et al., 2108.12409)."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return tuple(scale * slope for slope in slopes)
