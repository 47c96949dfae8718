"""A body as what the engine is asked: sampling, or a search of beams, and what both endpoints share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tuili.errors import InvalidRequestError
from tuili.runtime.openai.fields import SAMPLING
from tuili.runtime.openai.requests import sampling_values
from tuili.types import BeamSearchParams, GenerateRequest, SamplingParams

_OF_BEAMS = frozenset(
    {"n", "max_tokens", "temperature", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"}
)
_ONLY_BEAMS = {"length_penalty": 1.0, "early_stopping": False}  # and what they are without a search
_MAX_TOKENS = 2**31 - 1


def prompt_ending(body: Mapping[str, Any]) -> dict[str, Any]:
    """How a conversation's prompt ends. Raises InvalidRequestError where the body says both."""
    continues = bool(body.get("continue_final_message"))
    if continues and body.get("add_generation_prompt"):
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    begins = body.get("add_generation_prompt", not continues)
    return {"add_generation_prompt": begins, "continue_final_message": continues}


def engine_requests(
    body: Mapping[str, Any], url: str, defaults: Mapping[str, Any], prompts: Iterable[Mapping[str, Any]]
) -> list[GenerateRequest]:
    """A request for each prompt, whose fields these are. Raises InvalidRequestError naming the field."""
    shared = _shared_fields(body, url, defaults)
    return [GenerateRequest(**shared, **prompt) for prompt in prompts]


def _shared_fields(body: Mapping[str, Any], url: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    options = body.get("options")
    shared: dict[str, Any] = {
        "request_id": "",  # the server gives it one
        "priority": body.get("priority", 0),
        "cache_salt": body.get("cache_salt", ""),
        "context_len": None if options is None else options.num_ctx,
    }
    values = sampling_values(body, url, defaults)
    if body.get("use_beam_search"):
        beams = _beams(body, values)
        sampling = SamplingParams(
            n=beams.beam_width, seed=0, max_tokens=beams.max_tokens, ignore_eos=beams.ignore_eos,
            skip_special_tokens=beams.skip_special_tokens,
        )  # fmt: skip
        return {"sampling": sampling, "beam_search": beams, **shared}
    for name, neutral in _ONLY_BEAMS.items():
        if body.get(name, neutral) != neutral:
            raise InvalidRequestError(f"{name} needs use_beam_search = true beside it", param=name)
    return {"sampling": SamplingParams(**values), **shared}


def _beams(body: Mapping[str, Any], values: Mapping[str, Any]) -> BeamSearchParams:
    """The beams; what has no meaning for them is refused, unless it is the model that sets it."""
    for name in sorted((SAMPLING | {"logprobs", "echo"}) - _OF_BEAMS - {"seed"}):  # nothing is drawn
        if name in body and body[name] not in (False, 0, None, []):
            raise InvalidRequestError(f"{name} has no meaning with use_beam_search", param=name)
    asked = {name: body[name] for name in (*_OF_BEAMS, *_ONLY_BEAMS) if name in body}
    asked["beam_width"] = asked.pop("n", 1)
    asked["max_tokens"] = values["max_tokens"] or _MAX_TOKENS
    return BeamSearchParams(**asked)
