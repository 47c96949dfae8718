"""Cuts a prompt that is too long for its context, where a request asks for that. Otherwise it is refused elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuili.runtime.front.front import Front
from tuili.types import GenerateRequest, Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A request, and how many tokens of its prompt were cut."""

    request: GenerateRequest
    num_truncated: int = 0


def cut_to_fit(front: Front, request: GenerateRequest, num_keep: int) -> Fitted:
    """The request with room for its answer, max_tokens or else a quarter of the context, at most half of it.

    A prompt that fits is left whole. A conversation loses its oldest turns, system messages stay; any other prompt
    loses tokens behind the first num_keep, -1 meaning all that fit. Raises what making the prompt raises.
    """
    limit = min(request.context_len or front.max_model_len, front.max_model_len)
    unbounded = replace(request, context_len=None)
    prompt = front.prompt_tokens(unbounded)
    length = len(prompt.token_ids)
    if length < limit:
        return Fitted(request=request)
    budget = limit - max(min(request.sampling.max_tokens or limit // 4, limit // 2), 1)
    if request.messages is not None and len(request.messages) > 1:
        messages, kept = _without_oldest(front, unbounded, budget)
        return Fitted(request=replace(request, messages=messages), num_truncated=length - kept)
    ids = _without_middle(prompt.token_ids, num_keep, budget)
    return Fitted(
        request=replace(request, prompt=None, messages=None, prompt_token_ids=ids), num_truncated=length - len(ids)
    )


def _without_oldest(front: Front, request: GenerateRequest, budget: int) -> tuple[tuple[Message, ...], int]:
    """As many of the last turns as fit, at least the very last, and how many tokens these are."""
    messages = request.messages or ()
    starts = [i for i, message in enumerate(messages) if message.get("role") == "user"][1:] or [len(messages) - 1]

    def length(start: int) -> int:
        return len(front.prompt_tokens(replace(request, messages=_from(messages, start))).token_ids)

    low, high = 0, len(starts) - 1  # fewer turns are never longer
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if length(starts[middle]) <= budget else (middle + 1, high)
    return _from(messages, starts[low]), length(starts[low])


def _from(messages: Sequence[Message], start: int) -> tuple[Message, ...]:
    return (*(message for message in messages[:start] if message.get("role") == "system"), *messages[start:])


def _without_middle(ids: tuple[int, ...], num_keep: int, budget: int) -> tuple[int, ...]:
    kept = budget if num_keep < 0 else min(num_keep, budget)
    return (*ids[:kept], *ids[len(ids) - (budget - kept) :])
