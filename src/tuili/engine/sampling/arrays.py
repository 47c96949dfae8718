"""From sampling parameters to the arrays a backend reads (docs/sampling.md says what they mean).

What a request's rows have in common is worked out once, when it arrives; a step only stacks it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Float32, Int32, SamplerKind, SamplingArrays, UInt32
from tuili.engine.sampling.dry import Breakers, Dry, Penalized
from tuili.engine.sampling.history import SeenTokens
from tuili.engine.sampling.sampler_order import ChainStep, chain_steps, first_state, plain_values
from tuili.engine.sampling.token_rules import BadWords
from tuili.sampling_params import LogitsProcessor
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


class Bias(NamedTuple):
    """What is added to some logits of a row."""

    ids: Int32
    values: Float32


class Chain(NamedTuple):
    """A row's own order of samplers."""

    kinds: Int32  # [C]
    values: Float32  # [C, 3]


class Processor(NamedTuple):
    """A caller's logits processor."""

    call: LogitsProcessor
    takes_prompt: bool  # before the output's ids


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSampling:
    """What every sampled row of a request has in common."""

    params: bytes  # one _PARAMS record
    uses_history: bool = False
    bias: Bias | None = None
    bias_below_min_tokens: Bias | None = None  # the same, with everything that would end the answer banned
    chain: Chain | None = None
    dry: Dry | None = None
    words: BadWords | None = None
    allowed_ids: frozenset[int] | None = None  # that may be chosen
    allowed: UInt32 | None = None  # [ceil(vocab / 32)] their bits
    processors: tuple[Processor, ...] = ()
    sampler_state: float = math.nan  # at first; NaN: none

    @property
    def is_steady(self) -> bool:
        """Whether the rows of successive tokens differ in their position alone."""
        return self.needs_no_token and not (self.uses_history or self.carries_state)

    @property
    def needs_no_token(self) -> bool:
        """Whether a row can be told before the token ahead of it is known: the device itself counts that one in.

        It has the state of samplers behind it, too.
        """
        return not (self.dry or self.words or self.processors)

    @property
    def carries_state(self) -> bool:
        return not math.isnan(self.sampler_state)

    @property
    def allows_drafts(self) -> bool:
        """Whether a token's row can be worked out before the one ahead of it is chosen."""
        return not (self.processors or self.carries_state)


class SampleRow(NamedTuple):
    """One row that chooses a token, or only scores one (the first three fields alone)."""

    sampling: RowSampling
    sample_index: int
    position: int
    history: SeenTokens | None = None
    bias: Bias | None = None
    dry: Penalized | None = None
    sampler_state: float = math.nan
    allowed: UInt32 | None = None


def row_sampling(request: TokenRequest, stop_ids: frozenset[int], vocab_size: int) -> RowSampling:
    """Works out what the rows of `request` share; stop_ids are banned while it is below min_tokens."""
    s = request.sampling
    steps = chain_steps(s)
    kinds = [step.kind for step in steps]
    plain = plain_values(s, steps)
    biases = dict(s.logit_bias or {})
    biases |= {word[0]: -math.inf for word in request.bad_words if len(word) == 1}
    banned = {token_id: -math.inf for token_id in stop_ids if token_id < vocab_size}
    penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
    values = (s.temperature, 0, 1.0, 0.0) if plain is None else plain
    return RowSampling(
        params=np.array((*values, *penalties, request.seed), dtype=_PARAMS).tobytes(),
        uses_history=SamplerKind.PENALTIES in kinds,
        bias=_bias(biases),
        bias_below_min_tokens=_bias(biases | banned),
        chain=_chain(steps) if plain is None else None,
        dry=_dry(request, vocab_size) if SamplerKind.DRY in kinds else None,
        words=BadWords.of([word for word in request.bad_words if len(word) > 1]),
        allowed_ids=None if s.allowed_token_ids is None else frozenset(s.allowed_token_ids),
        allowed=None if s.allowed_token_ids is None else _bits(s.allowed_token_ids, vocab_size),
        processors=tuple(Processor(call, _takes_prompt(call)) for call in s.logits_processors or ()),
        sampler_state=first_state(steps),
    )


def sampling_arrays(rows: ListLike[SampleRow]) -> SamplingArrays:
    """Stacks R rows."""
    samplings, sample_indexes, positions, histories, biases, dries, states, _ = (
        zip(*rows, strict=True) if rows else ((),) * 8
    )
    params = np.frombuffer(b"".join([sampling.params for sampling in samplings]), dtype=_PARAMS)
    history_start, history_ids, history_counts = _joined(list(histories), np.int32)
    bias_start, bias_ids, bias_values = _joined(list(biases), np.float32)
    dry_start, dry_ids, dry_values = _joined(list(dries), np.float32)
    chain_start, chain_kinds, chain_values = _joined([sampling.chain for sampling in samplings], np.float32)
    return SamplingArrays(
        **{name: params[name].copy() for name in _PARAMS.names or ()},  # apart and aligned
        sample_index=np.array(sample_indexes, dtype=np.int32),
        position=np.array(positions, dtype=np.int32),
        history_start=history_start,
        history_ids=history_ids,
        history_counts=history_counts,
        bias_start=bias_start,
        bias_ids=bias_ids,
        bias_values=bias_values,
        chain_start=chain_start,
        chain_kinds=chain_kinds,
        chain_values=chain_values.reshape(-1, 3),
        dry_start=dry_start,
        dry_ids=dry_ids,
        dry_values=dry_values,
        sampler_state=np.array(states, dtype=np.float32),
    )


def allow_mask(rows: ListLike[SampleRow]) -> UInt32 | None:
    """[R, words], or None where no row is limited."""
    limited = [(r, row.allowed) for r, row in enumerate(rows) if row.allowed is not None]
    if not limited:
        return None
    mask = np.full((len(rows), len(limited[0][1])), 0xFFFFFFFF, dtype=np.uint32)
    for r, allowed in limited:
        mask[r] = allowed
    return mask


def with_bans(bias: Bias | None, banned: ListLike[int]) -> Bias:
    """The bias, and some ids banned."""
    ids, values = np.array(banned, dtype=np.int32), np.full(len(banned), -np.inf, dtype=np.float32)
    if bias is None:
        return Bias(ids, values)
    return Bias(np.concatenate((bias.ids, ids)), np.concatenate((bias.values, values)))


def _bias(values: dict[int, float]) -> Bias | None:
    if not values:
        return None
    ids = sorted(values)
    return Bias(np.array(ids, dtype=np.int32), np.array([values[i] for i in ids], dtype=np.float32))


def _chain(steps: ListLike[ChainStep]) -> Chain:
    values = [step.values for step in steps]
    return Chain(np.array([step.kind for step in steps], np.int32), np.array(values, np.float32).reshape(-1, 3))


def _dry(request: TokenRequest, vocab_size: int) -> Dry:
    s = request.sampling
    lengths = (s.dry_allowed_length, s.dry_penalty_last_n)
    return Dry(s.dry_multiplier, s.dry_base, *lengths, Breakers.of(request.dry_breakers, vocab_size))


def _takes_prompt(processor: LogitsProcessor) -> bool:
    """By its number of positional parameters."""
    try:
        parameters = inspect.signature(processor).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) >= 3


def _bits(ids: ListLike[int], vocab_size: int) -> UInt32:
    is_allowed = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
    is_allowed[list(ids)] = True
    return np.packbits(is_allowed, bitorder="little").view(np.uint32)


def _joined(
    rows: ListLike[tuple[Int32, NDArray[Number]] | None], dtype: type[Number]
) -> tuple[Int32, Int32, NDArray[Number]]:
    """CSR: starts [R + 1], ids and values of all rows one after another; None is an empty row."""
    starts = np.zeros(len(rows) + 1, dtype=np.int32)
    found = [row for row in rows if row is not None]
    if not found:
        return starts, np.empty(0, dtype=np.int32), np.empty(0, dtype=dtype)
    np.cumsum([0 if row is None else len(row[0]) for row in rows], out=starts[1:])
    return starts, np.concatenate([ids for ids, _ in found]), np.concatenate([values for _, values in found])
