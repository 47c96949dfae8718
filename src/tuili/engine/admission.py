"""Which requests can be served at all, and how long their answers may get.

Pure functions of the request and of limits that never change, so any thread may ask.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain

from tuili.engine.sampling.sampler_order import carries_state
from tuili.errors import ContextLengthError, InvalidRequestError
from tuili.types import TokenRequest


def check_request(request: TokenRequest, *, vocab_size: int, max_model_len: int, capacity: int | None) -> int:
    """As length_limit, once every value of the request is found to be in order, those of `resume` too.

    Raises InvalidRequestError, or ContextLengthError with the numbers.
    """
    _check_values(request, vocab_size)
    limit = length_limit(request, max_model_len=max_model_len, capacity=capacity)
    _check_resume(request, vocab_size, limit - len(request.prompt_token_ids))
    return limit


def length_limit(request: TokenRequest, *, max_model_len: int, capacity: int | None) -> int:
    """The number of tokens, prompt and output, at which an answer ends for lack of room or by max_tokens.

    capacity is the context, in tokens, that the whole cache can hold for one sequence; None is no
    limit. The last token of an answer is never computed and needs no room.
    Raises ContextLengthError with the numbers.
    """
    s, num_prompt = request.sampling, len(request.prompt_token_ids)
    numbers = {"prompt_tokens": num_prompt, "max_tokens": s.max_tokens, "n_ctx": max_model_len}
    if num_prompt >= max_model_len:
        raise ContextLengthError(
            f"prompt has {num_prompt} tokens; the context holds {max_model_len} and at least 1 must be left to answer",
            param="prompt",
            numbers=numbers,
        )
    if num_prompt + s.min_tokens > max_model_len:
        raise ContextLengthError(
            f"prompt has {num_prompt} tokens and min_tokens is {s.min_tokens}; the context holds {max_model_len}",
            param="min_tokens",
            numbers=numbers,
        )
    max_len = max_model_len if s.max_tokens is None else min(num_prompt + s.max_tokens, max_model_len)
    if capacity is None or max_len <= capacity + 1:
        return max_len
    least = num_prompt + max(s.min_tokens, 1) if s.max_tokens is None else max_len
    if least > capacity + 1:
        raise ContextLengthError(
            f"prompt has {num_prompt} tokens and with its answer needs room for {least - 1}; "
            f"the KV cache holds {capacity}",
            param="prompt" if s.max_tokens is None else "max_tokens",
            numbers=numbers | {"n_ctx": capacity},
        )
    return capacity + 1


def _check_values(request: TokenRequest, vocab_size: int) -> None:
    s = request.sampling
    if not request.prompt_token_ids:
        raise InvalidRequestError("prompt_token_ids must hold at least one token, got none", param="prompt_token_ids")
    _check_ids("prompt_token_ids", request.prompt_token_ids, vocab_size)
    _check_ids("stop_token_ids", s.stop_token_ids or (), vocab_size)
    _check_ids("logit_bias", s.logit_bias or (), vocab_size)
    _check_ids("bad_words", list(chain.from_iterable(request.bad_words)), vocab_size)
    _check_ids("dry_sequence_breakers", request.dry_breakers, vocab_size)
    _check_allowed(request, vocab_size)
    beams = request.beam_search
    if beams is not None and max(2, 1 + len(request.eos_token_ids)) * beams.beam_width > vocab_size:
        raise InvalidRequestError(
            f"beam_width must be at most half the vocabulary's {vocab_size}, less with several end tokens, "
            f"got {beams.beam_width}",
            param="beam_width",
        )
    if not 0 <= request.seed < 2**64:
        raise InvalidRequestError(f"seed must be an integer in [0, 2**64), got {request.seed}", param="seed")
    for name, count in (("logprobs", s.logprobs), ("prompt_logprobs", s.prompt_logprobs)):
        if count is not None and count > vocab_size:
            raise InvalidRequestError(f"{name} must be at most the vocabulary's {vocab_size}, got {count}", param=name)


def _check_resume(request: TokenRequest, vocab_size: int, max_output: int) -> None:
    if request.resume is None:
        return
    s = request.sampling
    if request.beam_search is not None:
        raise InvalidRequestError("resume: a beam search starts over, it is never resumed", param="resume")
    if not request.resume or not all(type(i) is int and 0 <= i < s.n for i in request.resume):
        found = sorted(map(str, request.resume))
        raise InvalidRequestError(f"resume must name answers in [0, {s.n}), got {', '.join(found)}", param="resume")
    for index, place in request.resume.items():
        _check_ids("resume", place.token_ids, vocab_size)
        if len(place.token_ids) >= max_output:
            raise InvalidRequestError(
                f"resume: answer {index} has {len(place.token_ids)} tokens already and may have {max_output}",
                param="resume",
            )
        if place.token_ids and place.sampler_state is None and carries_state(s):
            raise InvalidRequestError(f"resume: answer {index} needs its sampler_state", param="resume")


def _check_allowed(request: TokenRequest, vocab_size: int) -> None:
    """Something must be left to choose."""
    s = request.sampling
    if s.allowed_token_ids is None:
        return
    _check_ids("allowed_token_ids", s.allowed_token_ids, vocab_size)
    left = set(s.allowed_token_ids) - {word[0] for word in request.bad_words if len(word) == 1}
    if not left:
        raise InvalidRequestError("allowed_token_ids must hold an id that bad_words does not ban", param="bad_words")
    ends = {*(s.stop_token_ids or ()), *(() if s.ignore_eos else request.eos_token_ids)}
    if s.min_tokens and not left - ends:
        raise InvalidRequestError(
            "allowed_token_ids must hold an id that does not end the answer, as min_tokens asks for", param="min_tokens"
        )


def _check_ids(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    if not token_ids or (set(map(type, token_ids)) == {int} and min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    found = next(i for i in token_ids if type(i) is not int or not 0 <= i < vocab_size)
    raise InvalidRequestError(f"{name}: token ids must be integers in [0, {vocab_size}), got {found!r}", param=name)
