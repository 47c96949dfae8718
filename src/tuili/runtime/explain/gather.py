"""Follows one prompt through a model and notes what happens: the facts of an explanation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tuili.backends import backend_name
from tuili.config import store_dir
from tuili.errors import InvalidRequestError
from tuili.runtime.explain.facts import (
    Candidate,
    Explanation,
    GeneratedToken,
    InsideFacts,
    StageTime,
    TokenFact,
)
from tuili.runtime.explain.inside import look_inside
from tuili.runtime.explain.model_facts import cache_facts, describe_as_run, layer_groups, model_facts
from tuili.runtime.loading.loading import LoadOptions, open_model, weights_to_run
from tuili.runtime.loading.pipeline import Pipeline
from tuili.store.store import Store
from tuili.text.detokenizer import Detokenizer
from tuili.types import Event, Failed, Finished, GenerateRequest, PromptTokens, SamplingParams, TextDelta, TokenLogprobs
from tuili.weights.checkpoint import open_checkpoint

MAX_TOKENS = 256
MAX_CANDIDATES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainOptions:
    """max_tokens to generate, with the `top` likeliest candidates of each; temperature 0 is greedy.

    raw completes the prompt as it is; inside looks at attention with the reference backend. Raises InvalidRequestError.
    """

    max_tokens: int = 12
    top: int = 5
    temperature: float = 0.0
    seed: int = 0
    raw: bool = False
    system: str | None = None
    inside: bool = True
    load: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        for name, value, high in (("max_tokens", self.max_tokens, MAX_TOKENS), ("top", self.top, MAX_CANDIDATES)):
            if not 1 <= value <= high:
                raise InvalidRequestError(f"{name} must be an integer in [1, {high}], got {value}", param=name)


def explain(name: str, prompt: str, options: ExplainOptions) -> Explanation:
    """Loads the model and answers the prompt. Raises what open_model raises, and InvalidRequestError or
    ContextLengthError for the prompt.
    """
    load = replace(options.load, max_num_seqs=1, speculative=None)  # a step for every token, as it is explained
    with open_model(name, load) as pipeline:
        return _follow(pipeline, name, prompt, options, load)


def _follow(pipeline: Pipeline, name: str, prompt: str, options: ExplainOptions, load: LoadOptions) -> Explanation:
    checkpoint = open_checkpoint(Store(store_dir()).path(name))
    described = describe_as_run(checkpoint, load.quantization)
    request = _request(pipeline, prompt, options)
    rendered, token_ids, text_times = _timed_text(pipeline, request)
    found = _generate(pipeline, request)
    spec, num_prompt = checkpoint.spec, len(token_ids)
    cache = cache_facts(
        spec,
        pipeline.own_backend.cache_groups(load.block_size),
        num_prompt,
        num_prompt + len(found.tokens),
        pipeline.max_model_len,
    )
    inside = InsideFacts(skipped="it was not asked for")
    if options.inside:
        as_run = replace(checkpoint, weights=weights_to_run(checkpoint, load))
        inside = look_inside(as_run, token_ids, lambda token_id: _text(pipeline, token_id))
    return Explanation(
        model=model_facts(name, described),
        prompt=prompt,
        rendered=rendered,
        tokens=tuple(TokenFact(i, _text(pipeline, i), pipeline.tokenizer.is_special(i)) for i in token_ids),
        layers=layer_groups(described, cache.bytes_per_number),
        cache=cache,
        generated=tuple(found.tokens),
        answer=found.text,
        finish_reason=found.finish_reason,
        inside=inside,
        times=(
            StageTime("load", pipeline.load_s, "headers read, weights packed, tokenizer built"),
            *text_times,
            *found.times(num_prompt),
            _detokenize_time(pipeline, token_ids, found),
        ),
        backend=backend_name(pipeline.own_backend),
    )


def _request(pipeline: Pipeline, prompt: str, options: ExplainOptions) -> GenerateRequest:
    sampling = SamplingParams(
        temperature=options.temperature, max_tokens=options.max_tokens, logprobs=options.top, seed=options.seed
    )
    if options.raw or not pipeline.has_chat_template:
        if options.system is not None:
            raise InvalidRequestError("system needs a chat template: this prompt is completed as it is", param="system")
        return GenerateRequest(request_id="explain", sampling=sampling, prompt=prompt)
    system = () if options.system is None else ({"role": "system", "content": options.system},)
    messages = (*system, {"role": "user", "content": prompt})
    return GenerateRequest(request_id="explain", sampling=sampling, messages=messages)


def _timed_text(pipeline: Pipeline, request: GenerateRequest) -> tuple[str | None, list[int], list[StageTime]]:
    """The rendered prompt, its ids, and what each took."""
    start = time.perf_counter()
    if request.prompt is not None:
        ids = pipeline.tokenizer.encode(request.prompt)
        return None, ids, [StageTime("tokenize", time.perf_counter() - start)]
    rendered = pipeline.render(request)
    middle = time.perf_counter()
    ids = pipeline.tokenizer.encode_rendered(rendered)
    end = time.perf_counter()
    return str(rendered), ids, [StageTime("template", middle - start), StageTime("tokenize", end - middle)]


@dataclass(slots=True)
class _Found:
    """What came out, as it came."""

    tokens: list[GeneratedToken] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""

    def times(self, num_prompt: int) -> tuple[StageTime, ...]:
        first, rest = self.tokens[0].seconds, [token.seconds for token in self.tokens[1:]]
        prefill = StageTime("prefill", first, f"{num_prompt} prompt tokens at once, and the choice of the first token")
        note = f"{len(rest)} tokens one after another"
        return prefill, StageTime("decode", sum(rest), note)


def _generate(pipeline: Pipeline, request: GenerateRequest) -> _Found:
    found, last = _Found(), time.perf_counter()
    for event in pipeline.stream(request):
        if isinstance(event, PromptTokens):
            last = time.perf_counter()
        elif isinstance(event, TextDelta):
            now = time.perf_counter()
            found.text += event.text
            found.tokens += _generated(pipeline, event, now - last)
            last = now if event.token_ids else last
        else:
            _end(found, event)
    return found


def _generated(pipeline: Pipeline, event: TextDelta, seconds: float) -> Iterator[GeneratedToken]:
    for token_id, entry in zip(event.token_ids, event.logprobs or (), strict=False):
        best = sorted(entry, key=lambda i: -entry[i].logprob)
        yield GeneratedToken(
            _candidate(pipeline, token_id, entry), tuple(_candidate(pipeline, i, entry) for i in best), seconds
        )


def _end(found: _Found, event: Event) -> None:
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, Finished):
        found.finish_reason = event.finish_reason


def _candidate(pipeline: Pipeline, token_id: int, entry: TokenLogprobs) -> Candidate:
    return Candidate(token_id, _text(pipeline, token_id), math.exp(entry[token_id].logprob))


def _text(pipeline: Pipeline, token_id: int) -> str:
    """What a token stands for; the bytes of one that ends inside a character, as \\xNN."""
    return pipeline.tokenizer.token_bytes(token_id).decode("utf-8", errors="backslashreplace")


def _detokenize_time(pipeline: Pipeline, prompt_ids: list[int], found: _Found) -> StageTime:
    start = time.perf_counter()
    detokenizer = Detokenizer(pipeline.tokenizer, prompt_ids)
    for token in found.tokens:
        detokenizer.push(token.chosen.id)
    return StageTime("detokenize", time.perf_counter() - start, "ids back to text, a character at a time")
