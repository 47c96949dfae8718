"""Random rows of sampling parameters, as support.batches.sampling_arrays takes them, and allow masks for them."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from tuili.backend import SamplerKind as Kind

Rows = list[dict[str, Any]]


def random_row(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """A plain row, or one with a chain of any samplers, in the default order or another, or one with a state."""
    row: dict[str, Any] = {"seed": rng.getrandbits(64), "position": rng.randrange(1 << 31)}
    row["sample_index"] = rng.randrange(9)
    row["temperature"] = rng.choice([0.0, 0.3, 0.8, 1.0, 1.7])
    if rng.random() < 0.4:
        row["bias"] = {rng.randrange(vocab_size): rng.choice([-math.inf, -3.0, 0.5, 4.0]) for _ in range(4)}
    if rng.random() < 0.5:
        row |= {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": rng.choice([-0.4, 0.7])}
        row["history"] = {rng.randrange(vocab_size): rng.randrange(4) for _ in range(8)}
    if rng.random() < 0.4:
        row |= {"top_k": rng.choice([0, 1, 5, vocab_size + 3]), "top_p": rng.choice([0.2, 0.9, 1.0])}
        return row | {"min_p": rng.choice([0.0, 0.07, 1.0])}
    keep = rng.choice([0, 1, 4, vocab_size + 1])
    steps = [
        (Kind.PENALTIES,),
        (Kind.DRY,),
        (Kind.TEMPERATURE, row["temperature"] or 1.0, rng.choice([0.0, 0.5]), rng.choice([0.6, 1.0, 2.0])),
        (Kind.TOP_N_SIGMA, rng.choice([0.5, 1.0, 2.5])),
        (Kind.MIN_P, rng.choice([0.02, 0.3]), keep),
        (Kind.TOP_K, rng.choice([1, 3, 20, 1 << 24])),
        (Kind.TYPICAL_P, rng.choice([0.1, 0.5, 0.95]), keep),
        (Kind.TOP_P, rng.choice([0.1, 0.5, 0.95]), keep),
        (Kind.XTC, rng.choice([0.5, 1.0]), rng.choice([0.02, 0.1, 0.4]), keep),
    ]
    row["dry"] = {rng.randrange(vocab_size): rng.choice([1.5, 1e30]) for _ in range(3)}
    chain = [step for step in steps if rng.random() < 0.45]
    if rng.random() < 0.5:
        rng.shuffle(chain)
    last = {
        "none": [],
        "mirostat 1": [(Kind.MIROSTAT_1, 3.0, 0.1)],
        "mirostat 2": [(Kind.MIROSTAT_2, 3.0, 0.1)],
        "adaptive": [(Kind.ADAPTIVE_P, 0.3, 0.9)],
    }[rng.choice(["none", "none", "none", "mirostat 1", "mirostat 2", "adaptive"])]
    return row | {"chain": chain + last, "sampler_state": rng.choice([0.2, 1.5, 4.0, 9.0])}


def random_bits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> np.ndarray:
    is_allowed = rng.random((num_rows, -(-vocab_size // 32) * 32)) < rng.choice([0.02, 0.5, 1.0], (num_rows, 1))
    return np.packbits(is_allowed, axis=1, bitorder="little").view(np.uint32)
