"""Perplexity of a text as llama.cpp's llama-perplexity counts it, so that figures compare."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuili.errors import InvalidRequestError
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import Failed, GenerateRequest, SamplingParams, TextDelta, TokenLogprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """exp(mean negative log likelihood) over `num_scored` tokens, with its standard error."""

    value: float
    standard_error: float
    num_scored: int
    num_chunks: int


def perplexity(pipeline: Pipeline, text: str, *, context_len: int = 512, num_chunks: int | None = None) -> Perplexity:
    """Cuts `text` into disjoint chunks of context_len tokens and scores the second half of each.

    A vocabulary that begins texts with a bos token has it at the head of every chunk, in place of
    the chunk's first token. Raises InvalidRequestError when the text fills no chunk.
    """
    ids = pipeline.tokenizer.encode(text)
    available = len(ids) // context_len
    wanted = available if num_chunks is None else min(num_chunks, available)
    if wanted < 1:
        raise InvalidRequestError(f"text has {len(ids)} tokens, one chunk needs {context_len}", param="text")
    bos = pipeline.tokenizer.names.bos_token_id
    chunks = _chunks(ids, context_len, wanted, bos if bos == ids[0] else None)
    losses = _second_half_losses(pipeline, list(chunks))
    mean = sum(losses) / len(losses)
    variance = sum((x - mean) ** 2 for x in losses) / max(len(losses) - 1, 1)
    value = math.exp(mean)
    return Perplexity(
        value=value,
        standard_error=value * math.sqrt(variance / len(losses)),
        num_scored=len(losses),
        num_chunks=wanted,
    )


def _chunks(ids: Sequence[int], context_len: int, count: int, bos: int | None) -> Iterator[tuple[int, ...]]:
    for start in range(0, count * context_len, context_len):
        chunk = tuple(ids[start : start + context_len])
        yield chunk if bos is None else (bos, *chunk[1:])


def _second_half_losses(pipeline: Pipeline, chunks: Sequence[tuple[int, ...]]) -> list[float]:
    """Negative log likelihoods of tokens len/2 + 1 .. len - 1 of each chunk, given all before them."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    requests = [
        GenerateRequest(request_id=uuid.uuid4().hex, sampling=params, prompt_token_ids=chunk) for chunk in chunks
    ]
    losses: dict[int, list[float]] = {}
    for index, event in pipeline.run(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, TextDelta) and event.prompt_logprobs is not None:
            losses[index] = _losses(chunks[index], event.prompt_logprobs)
    return [loss for index in sorted(losses) for loss in losses[index]]


def _losses(chunk: tuple[int, ...], scores: Sequence[TokenLogprobs | None]) -> list[float]:
    first = len(chunk) // 2 + 1
    return [-entry[token].logprob for token, entry in zip(chunk[first:], scores[first:], strict=True) if entry]
