"""Logits processors: a caller's own Python between the raw logits and the sampler.

They run in the engine's thread. What one raises ends its own request and no other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as ListLike
from dataclasses import replace

import numpy as np

from tuili.backend import Backend, Float32, Int32, StepResult
from tuili.engine.rows import sample_rows
from tuili.engine.sampling.arrays import Processor, SampleRow, allow_mask, sampling_arrays
from tuili.engine.sequence import Chunk, Sequence, Status
from tuili.errors import InvalidRequestError

_log = logging.getLogger(__name__)
_LARGEST = 1e30  # penalties and temperatures leave this much finite


def choose_processed(
    chunks: ListLike[Chunk], result: StepResult, backend: Backend
) -> tuple[StepResult, dict[int, InvalidRequestError]]:
    """The result once the rows with processors have chosen from what these made of the raw logits.

    A row whose processor fails has the choice -1 and its error beside the result; one that held nothing to choose
    already keeps its -1. Nobody's processors are called once the answer has ended, as while its step was under way.
    """
    if result.logits is None:
        return result, {}
    token_ids, states = result.token_ids.copy(), result.sampler_state.copy()
    failures: dict[int, InvalidRequestError] = {}
    rows: list[int] = []
    scored: list[int] = []  # of those: with logprobs
    processed: list[Float32] = []
    samples: list[SampleRow] = []
    for chunk, index, r in _sampled(chunks):
        sequence = chunk.sequence
        has_ended = sequence.status is Status.FINISHED or index not in sequence.indexes
        if not sequence.sampling.processors or has_ended or token_ids[r] < 0:
            continue
        try:
            processed.append(_processed(sequence, result.logits_of(r)))
        except InvalidRequestError as error:
            token_ids[r], failures[r] = -1, error
        else:
            rows.append(r)
            samples += sample_rows(sequence, index, chunk.end)
            if sequence.num_logprobs >= 0:
                scored.append(r)
    if rows:
        choices = backend.sample(np.stack(processed), sampling_arrays(samples), allow_mask(samples))
        token_ids[rows], states[rows] = choices
    return _rescored(replace(result, token_ids=token_ids, sampler_state=states), result.token_ids, scored), failures


def _rescored(result: StepResult, before: Int32, rows: ListLike[int]) -> StepResult:
    """With logprobs and ranks of what `rows` chose now, from those of what they had chosen before."""
    if not rows:
        return result
    logprobs, ranks = result.logprobs.copy(), result.ranks.copy()
    for r in rows:
        raw, token_id = result.logits_of(r), result.token_ids[r]
        logprobs[r] = float(result.logprobs[r]) + float(raw[token_id]) - float(raw[before[r]])
        ranks[r] = 1 + int((raw > raw[token_id]).sum()) if ranks[r] else 0
    return replace(result, logprobs=logprobs, ranks=ranks)


def _sampled(chunks: ListLike[Chunk]) -> list[tuple[Chunk, int, int]]:
    """Every sampled row without a draft ahead of it: its chunk, answer and number in the step."""
    found, row = [], 0
    for chunk in chunks:
        row += len(chunk.scored)
        for index in chunk.samples:
            found.append((chunk, index, row))
            row += 1 + len(chunk.draft)
    return found


def _processed(sequence: Sequence, raw: Float32) -> Float32:
    """The logits after every processor. Raises InvalidRequestError when one misbehaves."""
    logits: Float32 = raw.copy()
    for processor in sequence.sampling.processors:
        logits = _called(processor, sequence, logits)
    return logits


def _called(processor: Processor, sequence: Sequence, logits: Float32) -> Float32:
    """Slices are copies: what a processor does to its arguments is its own affair."""
    shape, end = logits.shape, sequence.num_prompt_tokens
    prompt = (sequence.token_ids[:end],) if processor.takes_prompt else ()
    try:
        found = np.ascontiguousarray(processor.call(*prompt, sequence.token_ids[end:], logits), dtype=np.float32)
    except Exception as error:
        _log.warning("a logits processor failed", exc_info=error)
        raise InvalidRequestError(
            f"a logits processor raised {type(error).__name__}: {error!s:.200}", param="logits_processors"
        ) from error
    if found.shape != shape or not abs(found.max()) <= _LARGEST:
        what = f"shape {found.shape}" if found.shape != shape else f"a largest logit of {found.max()}"
        raise InvalidRequestError(
            f"a logits processor must return logits {shape}, the largest within {_LARGEST:.0e} of 0, got {what}",
            param="logits_processors",
        )
    return found
