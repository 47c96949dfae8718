"""Logits processors: a caller's own Python between the raw logits and the sampler.

They run in the engine's thread. What one raises ends its own request and no other.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence as ListLike
from dataclasses import replace

import numpy as np

from tuili.backend import Backend, Float32, Int32, StepResult
from tuili.engine.rows import sample_row
from tuili.engine.sampling import SampleRow, allow_mask, sampling_arrays
from tuili.engine.sequence import Chunk, Sequence
from tuili.errors import InvalidRequestError, TuiliError
from tuili.sampling_params import LogitsProcessor

_log = logging.getLogger(__name__)


def choose_processed(chunks: ListLike[Chunk], result: StepResult, backend: Backend) -> StepResult:
    """The result once the rows with processors have chosen from what these made of the raw logits.

    A sequence whose processor fails gets a `failure` and the choice -1.
    """
    if result.logits is None:
        return result
    token_ids, mus = result.token_ids.copy(), result.mirostat_mu.copy()
    rows: list[int] = []
    processed: list[Float32] = []
    samples: list[SampleRow] = []
    for chunk, index, r in _sampled(chunks):
        if chunk.sequence.sampling.processors:
            token_ids[r] = -1
            if (logits := _processed(chunk.sequence, result.logits[r])) is not None:
                rows.append(r)
                processed.append(logits)
                samples.append(sample_row(chunk.sequence, index, chunk.end))
    if rows:
        choices = backend.sample(np.stack(processed), sampling_arrays(samples), allow_mask(samples))
        token_ids[rows], mus[rows] = choices
    return _rescored(replace(result, token_ids=token_ids, mirostat_mu=mus), result.token_ids, rows)


def _rescored(result: StepResult, before: Int32, rows: ListLike[int]) -> StepResult:
    """With logprobs and ranks of what `rows` chose now, from those of what they had chosen before."""
    assert result.logits is not None
    logprobs, ranks = result.logprobs.copy(), result.ranks.copy()
    for r in rows:
        raw, token_id = result.logits[r].astype(np.float64), result.token_ids[r]
        logprobs[r] = result.logprobs[r] + raw[token_id] - raw[before[r]]
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


def _processed(sequence: Sequence, raw: Float32) -> Float32 | None:
    """The logits after every processor; None, and the sequence has its failure, when one misbehaves."""
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    logits: Float32 = raw.copy()
    try:
        for processor in sequence.sampling.processors:
            logits = _called(processor, prompt, output, logits)
    except TuiliError as error:
        sequence.failure = error
        return None
    return logits


def _called(processor: LogitsProcessor, prompt: list[int], output: list[int], logits: Float32) -> Float32:
    shape = logits.shape
    try:
        arguments = (prompt, output) if takes_prompt(processor) else (output,)
        found = np.ascontiguousarray(processor(*map(list, arguments), logits), dtype=np.float32)
    except Exception as error:
        _log.warning("a logits processor failed", exc_info=error)
        raise InvalidRequestError(
            f"a logits processor raised {type(error).__name__}: {error!s:.200}", param="logits_processors"
        ) from error
    if found.shape != shape or not np.isfinite(found.max()):
        what = f"shape {found.shape}" if found.shape != shape else f"a largest logit of {found.max()}"
        raise InvalidRequestError(
            f"a logits processor must return logits {shape} with a finite largest one, got {what}",
            param="logits_processors",
        )
    return found


def takes_prompt(processor: LogitsProcessor) -> bool:
    """Whether it is called with the prompt's ids before the output's: by its number of positional parameters."""
    try:
        parameters = inspect.signature(processor).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) >= 3
