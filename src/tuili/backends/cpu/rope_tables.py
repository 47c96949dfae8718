"""Rotary tables for the C++ runtime. Knows RopeSpec's formulas through models.rope; not layers or weights."""

from __future__ import annotations

import numpy as np

from tuili.backend import Float32
from tuili.models.rope import attention_factor, inverse_frequencies
from tuili.models.spec import RopeSpec


def rope_table(rope: RopeSpec, max_model_len: int) -> tuple[Float32, Float32]:
    """cos and sin [max_model_len, dim / 2] of every position.

    Angles are float32 products of float32 factors, as models were trained with; their cosines are exact to float32.
    """
    frequencies = np.array(inverse_frequencies(rope, max_model_len), np.float32)
    positions = np.arange(max_model_len, dtype=np.float32)
    angles = (positions[:, None] * frequencies).astype(np.float64)
    factor = attention_factor(rope, max_model_len)
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)
