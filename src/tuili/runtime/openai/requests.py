"""OpenAI's bodies as requests: sampling, conversations and prompts. Bodies are plain mappings without nulls.

Raises InvalidRequestError naming the field. Knows no HTTP and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuili.checks import refusal, shown
from tuili.errors import InvalidRequestError
from tuili.runtime.front.messages import checked_messages
from tuili.runtime.front.sampling_defaults import MODELFILE, SamplingDefaults
from tuili.runtime.openai.fields import (
    CHAT,
    COMPLETIONS,
    DEFAULT_COMPLETION_TOKENS,
    EFFORTS,
    IN_VAIN,
    MAX_LOGPROBS,
    MAX_PROMPTS,
    REFUSED,
    REQUEST,
    SAMPLING,
    WITHOUT_EFFECT,
)

_NUM_SEEDS = 2**64


def without_unimplemented(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without what has no effect, and without what asks for nothing. Raises for what is not implemented."""
    for name, value in body.items():
        if (refused := REFUSED.get(name)) is not None and not _is_one_of(value, refused.neutral):
            allowed = " or ".join(map(repr, refused.neutral))
            remedy = f"it may be {allowed} or absent" if allowed else "leave it out"
            raise InvalidRequestError(
                f"{name} = {shown(value)} is not implemented: {refused.reason}; {remedy}", param=name
            )
    return {name: value for name, value in body.items() if name not in REFUSED and name not in WITHOUT_EFFECT}


def asked_in_vain(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields without effect that ask for something."""
    return tuple(name for name, neutral in IN_VAIN.items() if name in body and not _is_one_of(body[name], neutral))


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in allowed)


def request_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """GenerateRequest fields that are passed on as they are."""
    for name, kind in REQUEST.items():
        value = body.get(name)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise InvalidRequestError(f"{name} must be of type {kind.__name__}, got {value!r:.80}", param=name)
    return {name: body[name] for name in REQUEST if name in body}


def sampling_values(body: Mapping[str, Any], url: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """SamplingParams fields: the body's over the defaults."""
    values = {name: value for name, value in body.items() if name in SAMPLING}
    if isinstance(values.get("logit_bias"), Mapping):
        values["logit_bias"] = {_token_id(key): value for key, value in values["logit_bias"].items()}
    if "max_completion_tokens" in body and url == CHAT:
        values["max_tokens"] = body["max_completion_tokens"]
    seed = values.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool) and -_NUM_SEEDS // 2 <= seed < -1:
        values["seed"] = seed % _NUM_SEEDS  # OpenAI's are signed; -1 draws one here
    values["logprobs"] = _num_logprobs(body, url)
    _check_count("prompt_logprobs", values.get("prompt_logprobs"))
    merged = {"max_tokens": None, **defaults, **values}
    if body.get("best_of") not in (None, merged.get("n", 1)):
        raise refusal("best_of", body["best_of"], f"n = {merged.get('n', 1)} or left out")
    return merged


def completion_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A model's sampling defaults, under OpenAI's limit for completions that name none, and a Modelfile neither."""
    own = defaults.only(MODELFILE) if isinstance(defaults, SamplingDefaults) else {}
    return {**defaults, "max_tokens": own.get("max_tokens", DEFAULT_COMPLETION_TOKENS)}


def conversation(body: Mapping[str, Any]) -> dict[str, Any]:
    """GenerateRequest fields of a chat body: messages, and what its template may read."""
    template_args = body.get("chat_template_kwargs", {})
    if not isinstance(template_args, Mapping):
        raise refusal("chat_template_kwargs", template_args, "an object")
    shared: dict[str, Any] = {}
    if "documents" in body:
        shared["documents"] = _documents(body["documents"])
    if (effort := body.get("reasoning_effort")) is not None:
        if effort not in EFFORTS:
            raise refusal("reasoning_effort", effort, f"one of {', '.join(EFFORTS)}")
        shared |= {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return {"messages": tuple(checked_messages(body.get("messages"))), "template_args": {**shared, **template_args}}


def prompts(prompt: object) -> list[dict[str, Any]]:
    """GenerateRequest fields of each prompt: text, token ids, or a list of texts or of lists of ids."""
    if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and isinstance(prompt[0], str | list):
        raise InvalidRequestError(f"a request may bring 1 to {MAX_PROMPTS} prompts, got {len(prompt)}", param="prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(one, str | list) for one in prompt):
        return [_prompt(one) for one in prompt]
    return [_prompt(prompt)]


def _prompt(prompt: object) -> dict[str, Any]:
    if isinstance(prompt, str) and prompt:
        return {"prompt": prompt}
    if isinstance(prompt, list) and prompt and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        return {"prompt_token_ids": tuple(prompt)}
    allowed = "text, a list of token ids, or a list of these; none may be empty"
    raise InvalidRequestError(f"prompt must be {allowed}, got {prompt!r:.80}", param="prompt")


def _documents(documents: object) -> object:
    if not isinstance(documents, list) or not all(isinstance(document, Mapping) for document in documents):
        raise refusal("documents", documents, "a list of objects")
    return documents


def _token_id(key: object) -> int:
    try:
        return int(str(key))
    except ValueError:
        raise InvalidRequestError(
            f"logit_bias must map token ids to numbers, found the key {key!r:.80}", param="logit_bias"
        ) from None


def _num_logprobs(body: Mapping[str, Any], url: str) -> int | None:
    asked, top = body.get("logprobs"), body.get("top_logprobs")
    if url == COMPLETIONS:
        _check_count("logprobs", asked)
        return asked
    if not isinstance(asked, bool | None):
        raise InvalidRequestError(f"logprobs must be true or false, got {asked!r:.80}", param="logprobs")
    _check_count("top_logprobs", top)
    if top and not asked:
        raise InvalidRequestError("top_logprobs needs logprobs = true beside it", param="top_logprobs")
    return (top or 0) if asked else None


def _check_count(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LOGPROBS:
        raise refusal(name, value, f"an integer in [0, {MAX_LOGPROBS}]")
