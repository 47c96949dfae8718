"""What is told of an answer: its next tokens, or that it ends early."""

from __future__ import annotations

from tuili.backend import StepResult
from tuili.engine.sampling.logprobs import token_logprobs
from tuili.engine.sequence import Sequence
from tuili.errors import TuiliError
from tuili.types import FinishReason, TokenDelta


def progress(
    sequence: Sequence, taken: tuple[int, ...], reason: FinishReason | None, result: StepResult, row: int
) -> TokenDelta:
    """The delta of tokens that a sequence has just taken, chosen by a step's rows from `row` on."""
    logprobs, prompt_logprobs = None, None
    if (count := sequence.num_logprobs) >= 0:
        logprobs = tuple([token_logprobs(result, r, count) for r in range(row, row + len(taken))])
    if sequence.prompt_logprobs and sequence.num_output_tokens == len(taken):
        prompt_logprobs = tuple(sequence.prompt_logprobs)
    return TokenDelta(
        request_id=sequence.request.request_id,
        index=sequence.indexes[0],
        token_ids=taken,
        finish_reason=reason,
        stop_token_id=taken[-1] if reason == "stop" and sequence.stop_reason is None else None,
        stop_reason=sequence.stop_reason,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        sampler_state=sequence.sampler_state if sequence.sampling.carries_state else None,
        num_cached_tokens=sequence.num_cached_tokens or 0,
        cache_miss=sequence.cache_miss,
        scheduled_s=sequence.scheduled_s,
    )


def endings(sequence: Sequence, reason: FinishReason, error: TuiliError | None) -> list[TokenDelta]:
    """Of every answer that a sequence stands for; one beam stands for them all."""
    indexes = sequence.indexes if sequence.beams is None else range(sequence.request.sampling.n)
    return [ending(sequence, index, reason, error) for index in indexes]


def ending(sequence: Sequence, index: int, reason: FinishReason, error: TuiliError | None) -> TokenDelta:
    """The terminal delta of an answer that ends early."""
    return TokenDelta(
        request_id=sequence.request.request_id,
        index=index,
        token_ids=(),
        finish_reason=reason,
        num_cached_tokens=sequence.num_cached_tokens or 0,
        error=error,
    )


def damage() -> TuiliError:
    """What an answer ends with whose next token cannot be chosen."""
    return TuiliError("the model computed logits that are not finite: its file may be damaged")
