"""Ollama's options in a request: over what the model asks for, with the names the caller wrote.

Values come from the request, else from the model's authors, else they are the library's: Ollama's own defaults
(temperature 0.8, top_k 40, top_p 0.9) are nobody's choice for a model and are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuili.checks import refusal
from tuili.errors import InvalidRequestError
from tuili.ollama_terms import OPTION_KINDS, SAMPLING_FIELDS, read_options
from tuili.server.dialects.ollama.bodies import AnswerBody, Options
from tuili.server.sampling_fields import named_sampling
from tuili.types import SamplingParams

MAX_TOP_LOGPROBS = 20
DEFAULT_NUM_KEEP = 4
_PREFIX = "options."


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a request's options come to. `without_effect` names those that change nothing."""

    sampling: SamplingParams
    num_ctx: int | None
    num_keep: int
    without_effect: tuple[str, ...]


def read_settings(body: AnswerBody, defaults: Mapping[str, Any], num_keep: int | None = None) -> Settings:
    """The body's options and logprobs over the model's sampling defaults and its num_keep.

    Raises InvalidRequestError naming the option as the caller wrote it.
    """
    options = body.options or Options()
    given = {name: value for name in OPTION_KINDS if (value := getattr(options, name)) is not None}
    found = read_options(given, _PREFIX)
    values = {"max_tokens": None, **defaults, **found.sampling, "logprobs": _num_logprobs(body)}
    num_keep = num_keep if found.num_keep is None else found.num_keep
    return Settings(
        sampling=named_sampling(values, {field: f"{_PREFIX}{name}" for name, field in SAMPLING_FIELDS.items()}),
        num_ctx=found.num_ctx,
        num_keep=DEFAULT_NUM_KEEP if num_keep is None else num_keep,
        without_effect=tuple(f"{_PREFIX}{name}" for name in found.without_effect),
    )


def _num_logprobs(body: AnswerBody) -> int | None:
    count = body.top_logprobs or 0
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise refusal("top_logprobs", count, f"an integer in [0, {MAX_TOP_LOGPROBS}]")
    if count and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return count if body.logprobs else None
