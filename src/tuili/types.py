"""The words every layer shares: requests going down, deltas and events coming up.

Values only: nobody writes to one that was handed on. What is made for every token is not frozen, which
would make it three times as dear. Knows no tokenizer, no engine, no wire format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tuili.beam_search_params import BeamSearchParams as BeamSearchParams
from tuili.errors import TuiliError
from tuili.sampling_params import RepetitionDetectionParams as RepetitionDetectionParams
from tuili.sampling_params import RequestOutputKind as RequestOutputKind
from tuili.sampling_params import SamplingParams as SamplingParams

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
Message = Mapping[str, Any]


@dataclass(slots=True)
class Logprob:
    """A token's log probability under the raw logits; rank 1 is the most likely."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]  # the chosen token and the k best at one position


class Resume(NamedTuple):
    """Where an answer goes on: the tokens it has already, and the TokenDelta.sampler_state that came with the last."""

    token_ids: tuple[int, ...]
    sampler_state: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """What the engine is asked: token ids in, token ids out. `seed` is always drawn by then.

    Stop strings are text and not the engine's business: the text layer aborts when it finds one. Strings that
    bear on the choice of tokens come as ids: bad_words, each a run of tokens, and dry_breakers, which has for each
    token that may begin a sequence breaker what must follow it (nothing, for most).
    With `resume` only the answers it names are computed, each from where it was; replayed tokens count as output in
    every respect, and deltas bring only what is new. Nothing of a beam search can be resumed.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    bad_words: tuple[tuple[int, ...], ...] = ()
    dry_breakers: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    beam_search: BeamSearchParams | None = None
    resume: Mapping[int, Resume] | None = None

    @property
    def indexes(self) -> tuple[int, ...]:
        """The answers that are to be computed, in order."""
        return tuple(range(self.sampling.n)) if self.resume is None else tuple(sorted(self.resume))


CacheMissReason = Literal["off", "prompt_logprobs", "new_salt", "new", "differs", "evicted", "block_end"]


class CacheMiss(NamedTuple):
    """Why no more of a prompt was found in the prefix cache, and the first token that was computed because of it.

    off: caching is off. prompt_logprobs: they were asked for, so all is computed. new_salt: nothing was computed under
    this cache_salt before. new: nothing was computed before that goes on as this does. differs: what was
    computed had another token at `position`. evicted: it was computed, but its block was needed for something else.
    block_end: all there could be was found, as only whole blocks are kept and the last token is always computed.
    Other salts are never looked at: they are other people's.
    """

    reason: CacheMissReason
    position: int


class BeamScore(NamedTuple):
    """How good a beam is: the sum of its log probabilities over its length to the power of the length penalty."""

    score: float
    cumulative_logprob: float
    logprobs: tuple[float, ...]  # of each token


@dataclass(kw_only=True, slots=True)
class TokenDelta:
    """What the engine answers: new tokens of answer `index`; the last one has a finish_reason.

    logprobs has one entry per token when asked for. prompt_logprobs comes once, with the first
    delta of the first answer; its first entry is None, as nothing predicts the first token. sampler_state is what
    mirostat or adaptive-p carries on behind the last token.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it: part of token_ids, not of the text
    stop_reason: str | None = None  # what ended it, if neither a token nor a limit
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    sampler_state: float | None = None
    num_cached_tokens: int = 0
    cache_miss: CacheMiss | None = None
    scheduled_s: float | None = None  # when its first step was planned, on the monotonic clock
    error: TuiliError | None = None
    beam: BeamScore | None = None  # with beam search, whose beams come whole and best first


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """What a person asks: exactly one of prompt, prompt_token_ids and messages.

    context_len bounds prompt and answer together, where the model's own context is not bound enough. Of a prompt:
    control tokens written in it count with parse_special, and add_special_tokens puts around it what the model's
    files put around a text.
    """

    request_id: str
    sampling: SamplingParams
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    shown_prompt: str | None = None  # the text to report beside prompt_token_ids
    chat_template: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    priority: int = 0
    cache_salt: str = ""
    beam_search: BeamSearchParams | None = None
    context_len: int | None = None
    parse_special: bool = False
    add_special_tokens: bool = True
    split_reasoning: bool = False  # tell thinking apart from the answer


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """First event: the prompt as the engine received it, without the num_truncated tokens it was asked to leave out."""

    token_ids: tuple[int, ...]
    text: str | None
    num_truncated: int = 0


@dataclass(kw_only=True, slots=True)
class TextDelta:
    """A piece of answer `index`. Text may lag behind tokens while a character or stop string is incomplete.

    With split_reasoning `reasoning` holds the thinking, which comes before the text; is_reasoning says that the
    tokens are thinking, or a mark around it.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    reasoning: str = ""
    is_reasoning: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Answer `index` is complete. stop_reason is the stop string or stop token id that ended it, or
    "repetition_detected".
    """

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Token counts of a whole request, and why no more of its prompt was cached.

    num_reasoning_tokens, part of num_output_tokens, is counted with split_reasoning; marks are left out.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    cache_miss: CacheMiss | None = None
    num_reasoning_tokens: int = 0


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
