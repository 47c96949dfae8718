"""Perplexity of a text as llama.cpp's llama-perplexity counts it, so that figures compare."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuili.errors import InvalidRequestError
from tuili.runtime.outputs import collect
from tuili.runtime.pipeline import Pipeline
from tuili.types import GenerateRequest, SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """exp(mean negative log likelihood) over `num_scored` tokens, with its standard error."""

    value: float
    standard_error: float
    num_scored: int
    num_chunks: int


def perplexity(
    pipeline: Pipeline, text: str, *, context_len: int = 512, num_chunks: int | None = None
) -> Perplexity:
    """Cuts `text` into disjoint chunks of context_len tokens and scores the second half of each.

    A vocabulary that begins texts with a bos token has it at the head of every chunk, in place of
    the chunk's first token. Raises InvalidRequestError when the text fills no chunk.
    """
    ids = pipeline.tokenizer.encode(text)
    available = len(ids) // context_len
    wanted = available if num_chunks is None else min(num_chunks, available)
    if wanted < 1:
        raise InvalidRequestError(f"text has {len(ids)} tokens, one chunk needs {context_len}", param="text")
    bos = pipeline.tokenizer.bos_token_id if pipeline.tokenizer.adds_bos else None
    losses: list[float] = []
    for chunk in _chunks(ids, context_len, wanted, bos):
        losses.extend(_second_half_losses(pipeline, chunk))
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


def _second_half_losses(pipeline: Pipeline, chunk: tuple[int, ...]) -> list[float]:
    """Negative log likelihoods of tokens len/2 + 1 .. len - 1, given all before them."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    request = GenerateRequest(request_id=uuid.uuid4().hex, sampling=params, prompt_token_ids=chunk)
    output = collect(request.request_id, 1, pipeline.stream(request))
    assert output.prompt_logprobs is not None
    first = len(chunk) // 2 + 1
    losses = []
    for token_id, entry in zip(chunk[first:], output.prompt_logprobs[first:], strict=True):
        assert entry is not None
        losses.append(-entry[token_id].logprob)
    return losses
