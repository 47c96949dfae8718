"""Ollama's options in this library's terms: what each sets, and which are without effect.

Values come from the request, else from the model's authors, else they are the library's: Ollama's own defaults
(temperature 0.8, top_k 40, top_p 0.9) are nobody's choice for a model and are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuili.checks import refusal
from tuili.errors import InvalidRequestError
from tuili.server.dialects.ollama.bodies import AnswerBody, Options
from tuili.server.sampling_fields import named_sampling
from tuili.types import SamplingParams

MAX_TOP_LOGPROBS = 20
DEFAULT_NUM_KEEP = 4
_FIELDS: Mapping[str, str] = {  # option -> field of SamplingParams
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")},
    **{name: name for name in ("presence_penalty", "frequency_penalty", "seed", "stop")},
    **{name: name for name in ("mirostat", "mirostat_tau", "mirostat_eta", "repeat_last_n")},
    "repeat_penalty": "repetition_penalty",
}
_ALL = 2**31 - 1  # repeat_last_n: of prompt and answer
_WITHOUT_EFFECT = (
    *("numa", "num_batch", "num_gpu", "main_gpu", "num_thread", "low_vram", "f16_kv", "logits_all", "vocab_only"),
    *("use_mmap", "use_mlock", "embedding_only", "penalize_newline", "tfs_z", "draft_num_predict"),
)
_NO_LIMIT = (-1, -2)  # num_predict: until the model ends, or until the context is full, which is what ends it here too


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a request's options come to. `without_effect` names those that change nothing."""

    sampling: SamplingParams
    num_ctx: int | None
    num_keep: int
    without_effect: tuple[str, ...]


def read_settings(body: AnswerBody, defaults: Mapping[str, Any]) -> Settings:
    """The body's options and logprobs over the model's sampling defaults.

    Raises InvalidRequestError naming the option as the caller wrote it.
    """
    options = body.options or Options()
    given = {field: value for name, field in _FIELDS.items() if (value := getattr(options, name)) is not None}
    if options.num_ctx is not None and options.num_ctx < 1:
        raise refusal("options.num_ctx", options.num_ctx, "an integer >= 1")
    if options.num_keep is not None and options.num_keep < -1:
        raise refusal("options.num_keep", options.num_keep, "an integer >= -1")
    if options.repeat_last_n == -1:
        given["repeat_last_n"] = _ALL
    values = {"max_tokens": None, **defaults, **given, **_max_tokens(options), "logprobs": _num_logprobs(body)}
    return Settings(
        sampling=named_sampling(values, {field: f"options.{name}" for name, field in _FIELDS.items()}),
        num_ctx=options.num_ctx,
        num_keep=DEFAULT_NUM_KEEP if options.num_keep is None else options.num_keep,
        without_effect=tuple(f"options.{name}" for name in _WITHOUT_EFFECT if getattr(options, name) is not None),
    )


def _max_tokens(options: Options) -> dict[str, int | None]:
    if options.num_predict is None:
        return {}
    if options.num_predict in _NO_LIMIT:
        return {"max_tokens": None}
    if options.num_predict < 1:
        raise refusal("options.num_predict", options.num_predict, "an integer >= 1, or -1 or -2 for no limit")
    return {"max_tokens": options.num_predict}


def _num_logprobs(body: AnswerBody) -> int | None:
    count = body.top_logprobs or 0
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise refusal("top_logprobs", count, f"an integer in [0, {MAX_TOP_LOGPROBS}]")
    if count and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return count if body.logprobs else None
