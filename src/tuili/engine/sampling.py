"""From sampling parameters to the arrays a backend reads (docs/sampling.md says what they mean).

What a request's rows have in common is worked out once, when it arrives; a step only stacks it.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tuili.backend import Float32, Int32, SamplingArrays
from tuili.engine.history import TokenHistory
from tuili.types import TokenRequest

Array = TypeVar("Array", Int32, Float32)

_PARAMS = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("seed", np.uint64),
    ]
)
_NO_IDS = np.empty(0, dtype=np.int32)
_NO_VALUES = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to some logits of a row."""

    ids: Int32
    values: Float32


@dataclass(frozen=True, slots=True)
class RowSampling:
    """What every sampled row of a request has in common."""

    params: bytes  # one _PARAMS record
    uses_history: bool
    bias: Bias
    bias_below_min_tokens: Bias  # the same, with everything that would end the answer banned


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row that chooses a token (history and bias given) or only scores one (neither)."""

    sampling: RowSampling
    sample_index: int
    position: int
    history: TokenHistory | None = None
    bias: Bias | None = None


def row_sampling(request: TokenRequest, stop_ids: frozenset[int], vocab_size: int) -> RowSampling:
    """Works out what the rows of `request` share; stop_ids are banned while it is below min_tokens."""
    s = request.sampling
    penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
    params = np.array((s.temperature, s.top_k, s.top_p, s.min_p, *penalties, request.seed), dtype=_PARAMS)
    biases = dict(s.logit_bias or {})
    banned = {token_id: -np.inf for token_id in stop_ids if token_id < vocab_size}
    return RowSampling(params.tobytes(), penalties != (1.0, 0.0, 0.0), _bias(biases), _bias(biases | banned))


def sampling_arrays(rows: ListLike[SampleRow]) -> SamplingArrays:
    """Stacks R rows."""
    params = np.frombuffer(b"".join([row.sampling.params for row in rows]), dtype=_PARAMS)
    histories = [row.history for row in rows]
    biases = [row.bias for row in rows]
    return SamplingArrays(
        **{name: np.ascontiguousarray(params[name]) for name in _PARAMS.names or ()},
        sample_index=np.array([row.sample_index for row in rows], dtype=np.int32),
        position=np.array([row.position for row in rows], dtype=np.int32),
        history_start=_starts([0 if h is None else len(h.ids) for h in histories]),
        history_ids=_joined([h.ids for h in histories if h is not None], _NO_IDS),
        history_counts=_joined([h.counts for h in histories if h is not None], _NO_IDS),
        bias_start=_starts([0 if b is None else len(b.ids) for b in biases]),
        bias_ids=_joined([b.ids for b in biases if b is not None], _NO_IDS),
        bias_values=_joined([b.values for b in biases if b is not None], _NO_VALUES),
    )


def _bias(values: dict[int, float]) -> Bias:
    ids = sorted(values)
    return Bias(np.array(ids, dtype=np.int32), np.array([values[i] for i in ids], dtype=np.float32))


def _starts(lengths: list[int]) -> Int32:
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _joined(parts: list[Array], empty: Array) -> Array:
    return np.concatenate(parts) if parts else empty
