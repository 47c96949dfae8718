"""What a person may ask of sampling: SamplingParams, checked field by field.

Names, defaults and ranges are vLLM's, and llama.cpp's for samplers that vLLM has not. Values only: knows no tokens'
texts, no engine, no arrays. docs/sampling.md says what they mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import cache
from typing import Any

from tuili.checks import refusal
from tuili.errors import InvalidRequestError
from tuili.sampler_names import DEFAULT_SAMPLERS, parse_samplers
from tuili.sampling_checks import (
    INT_MAX,
    Bounds,
    Check,
    callables,
    check_number,
    flag,
    logit_bias,
    number,
    some_token_ids,
    strings,
    token_ids,
    unless,
)

MAX_N = 128
MAX_STOPS = 16
MAX_STOP_LEN = 1024
MAX_WORDS = 1024
MAX_BREAKERS = 64
MAX_BREAKER_LEN = 64

LogitsProcessor = Callable[..., Any]


_BOUNDS: Mapping[str, Bounds] = {
    "n": Bounds(1, MAX_N, f"an integer in [1, {MAX_N}]", True),
    "temperature": Bounds(0, 2, "in [0, 2]"),
    "top_p": Bounds(0, 1, "in (0, 1]", is_open=True),
    "top_k": Bounds(-1, INT_MAX, f"an integer in [-1, {INT_MAX}]", True),
    "min_p": Bounds(0, 1, "in [0, 1]"),
    "presence_penalty": Bounds(-2, 2, "in [-2, 2]"),
    "frequency_penalty": Bounds(-2, 2, "in [-2, 2]"),
    "repetition_penalty": Bounds(1e-6, 1e6, "finite and > 0"),
    "max_tokens": Bounds(1, INT_MAX, f"an integer in [1, {INT_MAX}]", True),
    "min_tokens": Bounds(0, INT_MAX, f"an integer in [0, {INT_MAX}]", True),
    "logprobs": Bounds(-1, INT_MAX, f"an integer in [-1, {INT_MAX}]", True),
    "prompt_logprobs": Bounds(-1, INT_MAX, f"an integer in [-1, {INT_MAX}]", True),
    "truncate_prompt_tokens": Bounds(-1, INT_MAX, f"an integer in [-1, {INT_MAX}], not 0", True),
    "repeat_last_n": Bounds(-1, INT_MAX, f"an integer in [-1, {INT_MAX}]", True),
    "min_keep": Bounds(0, INT_MAX, f"an integer in [0, {INT_MAX}]", True),
    "typical_p": Bounds(0, 1, "in (0, 1]", is_open=True),
    "top_n_sigma": Bounds(-1, 1e6, "in [-1, 1000000]; 0 or less is none"),
    "xtc_probability": Bounds(0, 1, "in [0, 1]"),
    "xtc_threshold": Bounds(0, 1, "in [0, 1]"),
    "dynatemp_range": Bounds(0, 2, "in [0, 2]"),
    "dynatemp_exponent": Bounds(0, 100, "in [0, 100]"),
    "dry_multiplier": Bounds(0, 1000, "in [0, 1000]"),
    "dry_base": Bounds(1, 1000, "in [1, 1000]"),
    "dry_allowed_length": Bounds(1, INT_MAX, f"an integer in [1, {INT_MAX}]", True),
    "dry_penalty_last_n": Bounds(-1, INT_MAX, f"an integer in [-1, {INT_MAX}]", True),
    "adaptive_target": Bounds(-1, 1, "in [-1, 1]; less than 0 is off"),
    "adaptive_decay": Bounds(0, 0.99, "in [0, 0.99]"),
    "mirostat": Bounds(0, 2, "0, 1 or 2", True),
    "mirostat_tau": Bounds(0, 100, "in (0, 100]", is_open=True),
    "mirostat_eta": Bounds(0, 1, "in [0, 1]"),
}
_BOOLEANS = (
    "ignore_eos",
    "include_stop_str_in_output",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
UNSUPPORTED: Mapping[str, str] = {  # vLLM's fields without a meaning here, and why
    "structured_outputs": "structured output comes later",
    "guided_decoding": "structured output comes later",
    "logprob_token_ids": "ask for logprobs=-1 and pick the ids",
    "thinking_token_budget": "budgets for thinking are not implemented: use max_tokens",
    "watermarking": "watermarks are not implemented",
    "stream_interval": "every step is streamed",
    "flat_logprobs": "logprobs come as one dict per token",
    "skip_reading_prefix_cache": "load the model with enable_prefix_caching=False",
    "extra_args": "there is nothing that reads extra arguments",
}


class RequestOutputKind(Enum):
    """What each output of a stream holds: all so far, what is new, or everything once at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionDetectionParams:
    """Ends an answer whose last tokens are one pattern of min_pattern_size to max_pattern_size tokens, min_count times.

    min_pattern_size 0 is 1. Raises InvalidRequestError naming the field.
    """

    max_pattern_size: int
    min_pattern_size: int = 0
    min_count: int = 2

    def __post_init__(self) -> None:
        size = Bounds(1, 4096, "an integer in [1, 4096]", True)
        check_number("repetition_detection.max_pattern_size", self.max_pattern_size, size)
        least = Bounds(0, self.max_pattern_size, f"an integer in [0, max_pattern_size = {self.max_pattern_size}]", True)
        check_number("repetition_detection.min_pattern_size", self.min_pattern_size, least)
        count = Bounds(2, 4096, "an integer in [2, 4096]", True)
        check_number("repetition_detection.min_count", self.min_count, count)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop, under vLLM's and llama.cpp's names.

    temperature 0 is greedy. top_k 0 or -1 means all. seed None draws one per request.
    logprobs and prompt_logprobs count the alternatives reported beside the chosen token; -1 is
    the whole vocabulary. max_tokens None runs to the end of the context. logit_bias is clamped to [-100, 100];
    its ids may be texts, as JSON has them.
    output_kind is what AsyncLLM.generate yields. samplers is the order of the chain, as names or as llama.cpp's letters
    (`edskypmxta`); what is not in it does nothing. repeat_last_n -1 lets penalties count as vLLM does: repetition over
    prompt and output, the others over the output; n >= 0 is llama.cpp's: all three over the last n tokens of both.
    logits_processors are called as f(token_ids, logits) or f(prompt_ids, token_ids, logits) with the output so far and
    raw float32 logits [vocab], which they may change and must return, in the engine's thread.
    A field may be assigned, as vLLM's scripts do: everything is checked again; requests handed in before keep theirs.
    Raises InvalidRequestError (a ValueError) naming the field, what was found and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    repeat_last_n: int = -1
    min_keep: int = 0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: str | Sequence[str] | None = None
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    repetition_detection: RepetitionDetectionParams | Mapping[str, int] | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    truncate_prompt_tokens: int | None = None
    spaces_between_special_tokens: bool = True  # no tokenizer here writes any
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    best_of: int | None = None
    structured_outputs: None = None
    guided_decoding: None = None
    logprob_token_ids: None = None
    thinking_token_budget: None = None
    watermarking: None = None
    stream_interval: None = None
    flat_logprobs: None = None
    skip_reading_prefix_cache: None = None
    extra_args: None = None
    skip_clone: bool = False

    def __post_init__(self) -> None:
        for name, (neutral, check) in _FIELDS.items():
            value = getattr(self, name)
            if value is not neutral:  # most are, and a request waits for this
                object.__setattr__(self, name, check(name, value))
        if self.best_of not in (None, self.n):
            raise refusal("best_of", self.best_of, f"n = {self.n} or left out")
        if self.n > 1 and self.temperature == 0:
            raise InvalidRequestError("n must be 1 when temperature is 0: greedy answers are all alike", param="n")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be in [0, max_tokens = {self.max_tokens}], got {self.min_tokens}", param="min_tokens"
            )
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop needs detokenize=True: stop strings are found in text", param="stop")

    def with_seed(self, seed: int) -> SamplingParams:
        """The same parameters with a seed drawn for them."""
        return replace(self, seed=seed)

    def clone(self) -> SamplingParams:
        """An equal object that goes its own way."""
        return copy.copy(self)

    def changed(self) -> dict[str, Any]:
        """The fields that differ from the library's defaults."""
        found = {}
        for name, neutral in _neutral_values().items():
            value = getattr(self, name)
            if value is not neutral and value != neutral:
                found[name] = value
        return found

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings in their canonical form."""
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def order(self) -> tuple[str, ...]:
        """The samplers in the order they run."""
        if self.samplers is None:
            return DEFAULT_SAMPLERS
        assert isinstance(self.samplers, tuple)
        return self.samplers

    @property
    def repetition(self) -> RepetitionDetectionParams | None:
        """repetition_detection in its canonical form."""
        assert not isinstance(self.repetition_detection, Mapping)
        return self.repetition_detection


def _assign(params: SamplingParams, name: str, value: object) -> None:
    if name not in {field.name for field in fields(params)}:
        raise AttributeError(f"SamplingParams has no field {name!r}")
    changed = replace(params, **{name: value})  # type: ignore[arg-type]
    for field in fields(params):
        object.__setattr__(params, field.name, getattr(changed, field.name))


SamplingParams.__setattr__ = _assign  # type: ignore[method-assign, assignment]


def _stop(name: str, value: Any) -> tuple[str, ...]:
    stops: tuple[str, ...] = _STOPS(name, (value,) if isinstance(value, str) else value)
    return stops


def _truncate(name: str, value: Any) -> int:
    bounds = _BOUNDS[name]
    check_number(name, value, bounds)
    if not value:
        raise refusal(name, value, bounds.allowed)
    return int(value)


def _repetition_detection(name: str, value: Any) -> RepetitionDetectionParams:
    if isinstance(value, RepetitionDetectionParams):
        return value
    names = [field.name for field in fields(RepetitionDetectionParams)]
    if not isinstance(value, Mapping) or "max_pattern_size" not in value or not set(value) <= set(names):
        raise refusal(name, value, f"RepetitionDetectionParams or a mapping of {', '.join(names)}")
    return RepetitionDetectionParams(**value)


def _output_kind(name: str, value: Any) -> RequestOutputKind:
    found = getattr(value, "value", value)  # another library's enum of the same values
    if isinstance(found, bool) or found not in (0, 1, 2):
        raise refusal(name, value, "a RequestOutputKind")
    return RequestOutputKind(found)


def _unsupported(name: str, value: Any) -> Any:
    if value not in (None, False, -1, {}, [], ()):
        raise InvalidRequestError(f"{name} is not supported: {UNSUPPORTED[name]}", param=name)
    return value


_STOPS = strings(MAX_STOPS, MAX_STOP_LEN, "a string or a list of strings")
_NUMBERS = {name: number(bounds) for name, bounds in _BOUNDS.items()}
_CHECKS: Mapping[str, Check] = {
    **_NUMBERS,
    **dict.fromkeys(_BOOLEANS, flag),
    **dict.fromkeys(UNSUPPORTED, _unsupported),
    "temperature": number(_BOUNDS["temperature"], lambda value: 0.0 if value < 1e-5 else max(float(value), 0.01)),
    "top_k": number(_BOUNDS["top_k"], lambda value: max(value, 0)),
    "top_n_sigma": number(_BOUNDS["top_n_sigma"], lambda value: max(float(value), 0.0)),
    "adaptive_target": number(_BOUNDS["adaptive_target"], lambda value: -1.0 if value < 0 else float(value)),
    "seed": unless(-1, number(Bounds(0, 2**64 - 1, f"an integer in [0, {2**64 - 1}]", True))),
    "max_tokens": unless(None, _NUMBERS["max_tokens"]),
    "logprobs": unless(True, _NUMBERS["logprobs"], 1),
    "prompt_logprobs": unless(True, _NUMBERS["prompt_logprobs"], 1),
    "truncate_prompt_tokens": _truncate,
    "stop": _stop,
    "stop_token_ids": token_ids,
    "allowed_token_ids": some_token_ids,
    "logit_bias": logit_bias,
    "bad_words": strings(MAX_WORDS, MAX_STOP_LEN),
    "dry_sequence_breakers": strings(MAX_BREAKERS, MAX_BREAKER_LEN),
    "samplers": lambda _, value: parse_samplers(value),
    "repetition_detection": _repetition_detection,
    "logits_processors": callables,
    "output_kind": _output_kind,
}
_EMPTY = dict.fromkeys(("stop", "stop_token_ids", "bad_words", "logits_processors"), ())  # inside: nothing is no None
_FIELDS = {
    f.name: (_EMPTY.get(f.name, f.default), _CHECKS[f.name]) for f in fields(SamplingParams) if f.name in _CHECKS
}


@cache
def _neutral_values() -> Mapping[str, Any]:
    """The library's defaults, by field."""
    neutral = SamplingParams()
    return {field.name: getattr(neutral, field.name) for field in fields(neutral)}
