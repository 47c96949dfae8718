"""The text side of a model: a request goes in as text, messages or token ids, what the engine is asked comes out.

Tokenizer, chat template and sampling defaults; no weights, no engine. Serves a pipeline in one process, and a server
whose engines run in others.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tuili.errors import ChatTemplateError, ContextLengthError, InvalidRequestError
from tuili.runtime.front.answer import Answer, abort_stopped
from tuili.runtime.front.messages import plain_messages
from tuili.runtime.front.modelfile_settings import Preamble
from tuili.runtime.front.sampling_text import BreakerTables, bad_word_ids
from tuili.runtime.front.text_parts import special_tokens
from tuili.runtime.metrics import RequestMeter
from tuili.text.chat_template import ChatTemplate
from tuili.text.pretrained import PretrainedTokenizer
from tuili.text.prompt_text import PromptText
from tuili.text.reasoning import Marks, Phase, model_marks, phase_after
from tuili.text.tokenizer import Tokenizer
from tuili.types import Event, GenerateRequest, PromptTokens, SamplingParams, TokenRequest

if TYPE_CHECKING:  # asyncio is not for blocking callers to import
    from tuili.engine.client import EngineClient

_CHARS_PER_TOKEN = 16  # a text that is longer than so many for each token of the context hardly fits
MAX_CHARS = 4 << 20  # of a text that must be tokenized whole: each takes hundreds of bytes meanwhile
_MAX_MARK_TOKENS = 64  # a mark at the end of a prompt, and white space after it, are not longer


def _random_seed() -> int:
    return secrets.randbits(64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """What turns requests into tokens, and tokens into answers, for one model."""

    name: str
    vocab_size: int
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]
    chat_template: ChatTemplate | None
    max_model_len: int
    default_sampling: Mapping[str, Any]
    default_template_args: Mapping[str, Any] = field(default_factory=dict)  # under each request's own
    meter: RequestMeter = field(default_factory=RequestMeter)
    draw_seed: Callable[[], int] = _random_seed  # for requests without one
    preamble: Preamble = field(default_factory=Preamble)
    num_keep: int | None = None  # tokens at its start that a prompt keeps where it is cut, if the model asks for that
    breakers: BreakerTables = field(default_factory=BreakerTables, repr=False)

    def pretrained_tokenizer(self) -> PretrainedTokenizer:
        """The tokenizer under Hugging Face's names."""
        return PretrainedTokenizer(self.tokenizer, None if self.chat_template is None else self.chat_template.source)

    async def answer(self, request: GenerateRequest, client: EngineClient) -> AsyncGenerator[list[Event], None]:
        """Events of one request over a client of this model's engine; a step's events come together.

        Closing the iterator aborts. Raises InvalidRequestError, ContextLengthError or ChatTemplateError before the
        first event.
        """
        prompt, token_request = self.token_request(request)
        answer = self.new_answer(request, prompt, token_request)
        deltas = client.generate(token_request)
        before: list[Event] = [prompt]  # told once accepted: what is wrong with the request has been raised by then
        try:
            async for arrived in deltas:
                yield before + [event for delta in arrived for event in answer.push(delta)]
                before = []
                abort_stopped(client, answer)
                if answer.is_done:
                    return
        finally:
            await deltas.aclose()

    def token_request(self, request: GenerateRequest) -> tuple[PromptTokens, TokenRequest]:
        """The prompt as tokens, and what the engine is asked.

        Raises InvalidRequestError unless exactly one kind of prompt is given, ContextLengthError for a prompt that
        leaves no room to answer within the request's context_len.
        """
        sampling = request.sampling
        prompt = self._prompt_tokens(request, may_be_longer=sampling.truncate_prompt_tokens is not None)
        breakers = tuple(sampling.dry_sequence_breakers)
        if sampling.truncate_prompt_tokens is not None:
            prompt = self._truncated(prompt, sampling.truncate_prompt_tokens)
        if request.context_len is not None:
            sampling = _bounded(sampling, len(prompt.token_ids), request.context_len)
        return prompt, TokenRequest(
            request_id=request.request_id,
            prompt_token_ids=prompt.token_ids,
            sampling=sampling,
            seed=self.draw_seed() if sampling.seed is None else sampling.seed,
            eos_token_ids=self.eos_token_ids,
            priority=request.priority,
            cache_salt=request.cache_salt,
            beam_search=request.beam_search,
            bad_words=bad_word_ids(self.tokenizer, sampling.bad_words or ()),
            dry_breakers=self.breakers.find(self.tokenizer, breakers) if sampling.dry_multiplier else {},
        )

    def prompt_tokens(self, request: GenerateRequest) -> PromptTokens:
        """The prompt, whether it fits or not. Raises as token_request does, and for more than MAX_CHARS."""
        return self._prompt_tokens(request, may_be_longer=True)

    def new_answer(self, request: GenerateRequest, prompt: PromptTokens, token_request: TokenRequest) -> Answer:
        """What turns the engine's deltas into events: push them in."""
        return Answer(self.tokenizer, token_request, self.meter, self._thinking(request, prompt))

    def _thinking(self, request: GenerateRequest, prompt: PromptTokens) -> tuple[Marks, Phase] | None:
        if not request.split_reasoning:
            return None
        template = request.chat_template or ("" if self.chat_template is None else self.chat_template.source)
        marks = model_marks(template, lambda text: self.tokenizer.token_id(text) is not None)
        text = prompt.text
        if text is None:
            text = self.tokenizer.decode(prompt.token_ids[-_MAX_MARK_TOKENS:], skip_special_tokens=False)
        return marks, phase_after(text, marks, is_continued=request.continue_final_message)

    def _truncated(self, prompt: PromptTokens, count: int) -> PromptTokens:
        """The prompt's last `count` tokens; -1: as many as leave room for one to answer."""
        kept = prompt.token_ids[-(self.max_model_len - 1 if count < 0 else count) :]
        return PromptTokens(kept, prompt.text, len(prompt.token_ids) - len(kept))

    def _prompt_tokens(self, request: GenerateRequest, *, may_be_longer: bool) -> PromptTokens:
        given = [name for name in ("prompt", "prompt_token_ids", "messages") if getattr(request, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InvalidRequestError(
                f"give exactly one of prompt, prompt_token_ids and messages, got {found}", param="prompt"
            )
        if request.prompt_token_ids is not None:
            return PromptTokens(self._checked_ids(request.prompt_token_ids), request.shown_prompt)
        if isinstance(request.prompt, PromptText):
            return PromptTokens(tuple(self.tokenizer.encode_rendered(request.prompt)), str(request.prompt))
        if request.prompt is not None:
            self._check_length(request, request.prompt, may_be_longer=may_be_longer)
            ids = self.tokenizer.encode(
                request.prompt,
                add_special_tokens=request.add_special_tokens,
                parse_special=request.parse_special,
            )
            if not ids:
                raise InvalidRequestError("prompt is empty: give at least one token", param="prompt")
            return PromptTokens(tuple(ids), request.prompt)
        rendered = self.render(request)
        self._check_length(request, rendered.plain(), may_be_longer=may_be_longer)
        return PromptTokens(tuple(self.tokenizer.encode_rendered(rendered)), str(rendered))

    def _check_length(self, request: GenerateRequest, text: str, *, may_be_longer: bool) -> None:
        """Refuses a text of which a part alone is twice too long: all of it would take minutes and gigabytes.

        Special tokens count as such, wherever they stand: what fits is never refused.
        """
        if may_be_longer:
            check_chars(text)
            return
        limit = self.max_model_len
        num_chars = _CHARS_PER_TOKEN * limit
        while num_chars < len(text):
            part = text[:num_chars]
            if len(self.tokenizer.encode(part, add_special_tokens=False, parse_special=True)) > 2 * limit:
                found = f"prompt has more than {2 * limit} tokens; the context holds {limit}"
                raise ContextLengthError(
                    f"{found} and at least 1 must be left to answer",
                    param="prompt",
                    numbers={"n_ctx": limit, "max_tokens": request.sampling.max_tokens},
                )
            num_chars *= 4

    def render(self, request: GenerateRequest) -> PromptText:
        """The conversation as the template writes it. Raises ChatTemplateError, also when there is no template."""
        template = self.chat_template
        if request.chat_template is not None:
            template = ChatTemplate(request.chat_template, special_tokens(self.tokenizer))
        if template is None:
            raise ChatTemplateError(f"model {self.name!r} has no chat template: give a prompt, or your own template")
        return template.render(
            plain_messages(self.preamble.before(request.messages or ()), template.source),
            tools=request.tools,
            add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
            continue_final_message=request.continue_final_message,
            template_args={**self.default_template_args, **request.template_args},
        )

    def _checked_ids(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if not ids:
            raise InvalidRequestError("prompt_token_ids is empty: give at least one token", param="prompt_token_ids")
        size = self.vocab_size
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < size:
                raise InvalidRequestError(
                    f"prompt_token_ids must be integers in [0, {size}), got {token_id!r}", param="prompt_token_ids"
                )
        return tuple(ids)


def check_chars(text: str) -> None:
    """Raises InvalidRequestError for a text too long to be tokenized whole."""
    if len(text) > MAX_CHARS:
        raise InvalidRequestError(
            f"prompt must have at most {MAX_CHARS} characters here, got {len(text)}", param="prompt"
        )


def _bounded(sampling: SamplingParams, num_prompt: int, context_len: int) -> SamplingParams:
    """The same, with an answer that ends where the context does."""
    room = context_len - num_prompt
    if room < 1:
        raise ContextLengthError(
            f"prompt has {num_prompt} tokens; the context is limited to {context_len} by the request "
            "and at least 1 must be left to answer",
            param="prompt",
            numbers={"prompt_tokens": num_prompt, "max_tokens": sampling.max_tokens, "n_ctx": context_len},
        )
    max_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    return replace(sampling, max_tokens=max_tokens)
