"""From sampling parameters to the arrays a backend reads (docs/sampling.md says what they mean).

What a request's rows have in common is worked out once, when it arrives; a step only stacks it.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Float32, Int32, SamplingArrays
from tuili.engine.history import SeenTokens
from tuili.types import TokenRequest

Number = TypeVar("Number", np.int32, np.float32)

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
    bias: Bias | None
    bias_below_min_tokens: Bias | None  # the same, with everything that would end the answer banned


class SampleRow(NamedTuple):
    """One row that chooses a token (history and bias given) or only scores one (neither)."""

    sampling: RowSampling
    sample_index: int
    position: int
    history: SeenTokens | None = None
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
    samplings, sample_indexes, positions, histories, biases = zip(*rows, strict=True) if rows else ((),) * 5
    params = np.frombuffer(b"".join([sampling.params for sampling in samplings]), dtype=_PARAMS)
    history_start, history_ids, history_counts = _joined(list(histories), np.int32)
    bias_start, bias_ids, bias_values = _joined([b and (b.ids, b.values) for b in biases], np.float32)
    return SamplingArrays(
        **{name: np.ascontiguousarray(params[name]) for name in _PARAMS.names or ()},
        sample_index=np.array(sample_indexes, dtype=np.int32),
        position=np.array(positions, dtype=np.int32),
        history_start=history_start,
        history_ids=history_ids,
        history_counts=history_counts,
        bias_start=bias_start,
        bias_ids=bias_ids,
        bias_values=bias_values,
    )


def _bias(values: dict[int, float]) -> Bias | None:
    if not values:
        return None
    ids = sorted(values)
    return Bias(np.array(ids, dtype=np.int32), np.array([values[i] for i in ids], dtype=np.float32))


def _joined(
    rows: list[tuple[Int32, NDArray[Number]] | None], dtype: type[Number]
) -> tuple[Int32, Int32, NDArray[Number]]:
    """CSR: starts [R + 1], ids and values of all rows one after another; None is an empty row."""
    starts = np.zeros(len(rows) + 1, dtype=np.int32)
    found = [row for row in rows if row is not None]
    if not found:
        return starts, np.empty(0, dtype=np.int32), np.empty(0, dtype=dtype)
    np.cumsum([0 if row is None else len(row[0]) for row in rows], out=starts[1:])
    return starts, np.concatenate([ids for ids, _ in found]), np.concatenate([values for _, values in found])
