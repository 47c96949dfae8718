"""The words every layer shares: sampling parameters, requests going down, deltas and events coming up.

Values only: nobody writes to one that was handed on. What is made for every token is not frozen, which
would make it three times as dear. Knows no tokenizer, no engine, no wire format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal

from tuili.errors import InvalidRequestError, TuiliError

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
Message = Mapping[str, Any]

MAX_N = 128
MAX_STOPS = 16
MAX_STOP_LEN = 1024


class RequestOutputKind(Enum):
    """What each output of a stream holds: all so far, what is new, or everything once at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


def _check_number(name: str, value: object, low: float, high: float, allowed: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise InvalidRequestError(f"{name} must be {allowed}, got {value!r}", param=name)


def _check_int(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
        raise InvalidRequestError(f"{name} must be {allowed}, got {value!r}", param=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop, under vLLM's names, defaults and ranges.

    temperature 0 is greedy. top_k 0 or -1 means all. seed None draws one per request.
    logprobs and prompt_logprobs count the alternatives reported beside the chosen token; -1 is
    the whole vocabulary. max_tokens None runs to the end of the context. logit_bias is clamped to [-100, 100].
    output_kind is what AsyncLLM.generate yields.
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
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        self._check_types()
        self._check_ranges()
        self._canonicalize()
        if self.n > 1 and self.temperature == 0:
            raise InvalidRequestError("n must be 1 when temperature is 0: greedy answers are all alike", param="n")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be in [0, max_tokens = {self.max_tokens}], got {self.min_tokens}", param="min_tokens"
            )
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop needs detokenize=True: stop strings are found in text", param="stop")

    def _check_ranges(self) -> None:
        _check_int("n", self.n, 1, MAX_N)
        _check_number("temperature", self.temperature, 0.0, 2.0, "in [0, 2]")
        if not (isinstance(self.top_p, (int, float)) and self.top_p != 0):
            raise InvalidRequestError(f"top_p must be in (0, 1], got {self.top_p!r}", param="top_p")
        _check_number("top_p", self.top_p, 0.0, 1.0, "in (0, 1]")
        _check_int("top_k", self.top_k, -1, 2**31 - 1)
        _check_number("min_p", self.min_p, 0.0, 1.0, "in [0, 1]")
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0, "in [-2, 2]")
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "in [-2, 2]")
        _check_number("repetition_penalty", self.repetition_penalty, 1e-6, 1e6, "finite and > 0")
        if self.seed is not None and self.seed != -1:
            _check_int("seed", self.seed, 0, 2**64 - 1)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None and count is not True:
                _check_int(name, count, -1, 2**31 - 1)
        for token_id, value in (self.logit_bias or {}).items():
            _check_int("logit_bias", token_id, 0, 2**31 - 1)
            _check_number("logit_bias", value, -math.inf, math.inf, "a finite number")

    def _check_types(self) -> None:
        for name in ("ignore_eos", "include_stop_str_in_output", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false, got {getattr(self, name)!r}", param=name)
        allowed_types: dict[str, tuple[tuple[type, ...], str]] = {
            "stop": ((str, list, tuple), "a string or a list of strings"),
            "stop_token_ids": ((list, tuple), "a list of token ids"),
            "logit_bias": ((Mapping,), "a mapping of token ids to numbers"),
        }
        for name, (types, allowed) in allowed_types.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, types):
                raise InvalidRequestError(f"{name} must be {allowed}, got {value!r:.200}", param=name)
        if not isinstance(self.output_kind, RequestOutputKind):
            raise InvalidRequestError(
                f"output_kind must be a RequestOutputKind, got {self.output_kind!r:.200}", param="output_kind"
            )

    def _canonicalize(self) -> None:
        """One form inside: tuples for lists, None for seed -1, 0 for top_k -1, 0 for a vanishing temperature."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LEN for s in stops):
            allowed = f"at most {MAX_STOPS} non-empty strings of at most {MAX_STOP_LEN} characters"
            raise InvalidRequestError(f"stop must be {allowed}, got {self.stop!r:.200}", param="stop")
        for token_id in self.stop_token_ids or ():
            _check_int("stop_token_ids", token_id, 0, 2**31 - 1)
        canonical: dict[str, object] = {
            "stop": stops,
            "stop_token_ids": tuple(dict.fromkeys(self.stop_token_ids or ())),
            "seed": None if self.seed == -1 else self.seed,
            "logit_bias": self.logit_bias and {i: min(max(v, -100.0), 100.0) for i, v in self.logit_bias.items()},
            "top_k": max(self.top_k, 0),
            "temperature": 0.0 if self.temperature < 1e-5 else max(float(self.temperature), 0.01),
            "logprobs": 1 if self.logprobs is True else self.logprobs,
            "prompt_logprobs": 1 if self.prompt_logprobs is True else self.prompt_logprobs,
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    def with_seed(self, seed: int) -> SamplingParams:
        """The same parameters with a seed drawn for them."""
        return replace(self, seed=seed)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings in their canonical form."""
        assert isinstance(self.stop, tuple)
        return self.stop


@dataclass(slots=True)
class Logprob:
    """A token's log probability under the raw logits; rank 1 is the most likely."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]  # the chosen token and the k best at one position


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """What the engine is asked: token ids in, token ids out. `seed` is always drawn by then.

    Stop strings are text and not the engine's business: the text layer aborts when it finds one.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""


@dataclass(kw_only=True, slots=True)
class TokenDelta:
    """What the engine answers: new tokens of answer `index`; the last one has a finish_reason.

    logprobs has one entry per token when asked for. prompt_logprobs comes once, with the first
    delta of the first answer; its first entry is None, as nothing predicts the first token.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it: part of token_ids, not of the text
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    num_cached_tokens: int = 0
    scheduled_s: float | None = None  # when its first step was planned, on the monotonic clock
    error: TuiliError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """What a person asks: exactly one of prompt, prompt_token_ids and messages."""

    request_id: str
    sampling: SamplingParams
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    chat_template: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """First event: the prompt as the engine received it."""

    token_ids: tuple[int, ...]
    text: str | None


@dataclass(kw_only=True, slots=True)
class TextDelta:
    """A piece of answer `index`. Text may lag behind tokens while a character or stop string is incomplete."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Answer `index` is complete. stop_reason is the stop string or stop token id that ended it."""

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Token counts of a whole request."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Seconds on the monotonic clock: arrival to first token, and first token to last.

    arrival_s is the arrival itself; queue_s, part of time_to_first_token_s, is the wait for the engine.
    """

    time_to_first_token_s: float
    decode_s: float
    arrival_s: float = 0.0
    queue_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """Terminal event: everything went well."""

    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal event: nothing more will come."""

    error: TuiliError


Event = PromptTokens | TextDelta | Finished | Done | Failed
