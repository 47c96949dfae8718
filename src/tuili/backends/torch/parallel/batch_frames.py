"""A batch as the other ranks need it: what is computed, without how tokens are chosen, which the first rank does."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np

from tuili.backend import Batch, SamplingArrays
from tuili.backends.torch.parallel.frames import Frame
from tuili.backends.torch.rows import is_greedy

_SENT = (
    *("input_ids", "positions", "query_start", "seq_lens", "block_tables", "slot_mapping", "block_copies"),
    *("slots", "carry", "sample_rows", "targets"),
)
_NEUTRAL = {"top_p": 1.0, "min_p": 1.0, "repetition_penalty": 1.0, "sampler_state": math.nan}  # 0 where not said


def frame_of(batch: Batch) -> Frame:
    """The word is "step"."""
    ways = {"is_greedy": is_greedy(batch), "is_plain": batch.want_logits is None and not batch.want_hidden}
    return Frame("step", ways, {name: getattr(batch, name) for name in _SENT})


def batch_of(frame: Frame) -> Batch:
    """All rows are greedy, which costs least: the first rank says what they chose.

    A step goes the same way on all ranks. So where the first scores or draws, scores are wanted here, too, and where it
    hands out logits or hidden states, those of no row are.
    """
    num_rows = len(frame.arrays["sample_rows"])
    arrays: dict[str, Any] = dict(frame.arrays)
    return Batch(
        **arrays,
        num_logprobs=np.full(num_rows, -1 if frame.values["is_greedy"] else 0, np.int32),
        sampling=_greedy(num_rows),
        want_logits=None if frame.values["is_plain"] else np.zeros(num_rows, np.bool_),
    )


def _greedy(num_rows: int) -> SamplingArrays:
    types = {"Int32": np.int32, "Float32": np.float32, "UInt64": np.uint64}
    arrays = {}
    for field in fields(SamplingArrays):
        dtype = types[str(field.type)]
        if field.name.endswith("_start"):
            arrays[field.name] = np.zeros(num_rows + 1, dtype)
        elif field.name.split("_")[0] in ("history", "bias", "chain", "dry"):
            arrays[field.name] = np.zeros((0, 3) if field.name == "chain_values" else 0, dtype)
        else:
            arrays[field.name] = np.full(num_rows, _NEUTRAL.get(field.name, 0), dtype)
    return SamplingArrays(**arrays)
