"""Terminal deltas of answers that end early."""

from __future__ import annotations

from tuili.engine.sequence import Sequence
from tuili.errors import TuiliError
from tuili.types import FinishReason, TokenDelta


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
