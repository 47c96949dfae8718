"""Prompts as callers of the Python API write them: text, ids, dicts of vLLM's shapes, and lists of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from tuili.errors import InvalidRequestError
from tuili.text.tokenizer import Tokenizer

Prompt = str | Mapping[str, Any] | Sequence[int]


class TextPrompt(TypedDict):
    """A prompt as text. Prompts share cached prefixes only within one cache_salt."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A prompt as token ids, for which `prompt` may hold the text to report."""

    prompt_token_ids: Sequence[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


_REFUSED = {
    "prompt_embeds": "prompts are text or token ids",
    "multi_modal_data": "models read text only",
    "encoder_prompt": "models have a decoder only",
}
_ALLOWED = ("prompt", "prompt_token_ids", "cache_salt")


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt or several, as several. Raises InvalidRequestError for what is neither."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Sequence):
        allowed = "a string, a dict, a list of token ids, or a list of these"
        hint = ": generate_each takes any iterable" if isinstance(prompts, Iterable) else ""
        raise InvalidRequestError(f"prompts must be {allowed}, got {type(prompts).__name__}{hint}", param="prompts")
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The GenerateRequest fields a prompt stands for. Raises InvalidRequestError naming what is wrong."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, bytes) or not isinstance(prompt, Mapping | Sequence):
        raise InvalidRequestError(
            f"a prompt must be a string, a dict or a list of token ids, got {type(prompt).__name__}", param="prompts"
        )
    if not isinstance(prompt, Mapping):
        return {"prompt_token_ids": tuple(prompt)}
    for name, value in prompt.items():
        if name in _REFUSED and value:
            raise InvalidRequestError(f"{name} is not implemented: {_REFUSED[name]}", param=name)
    if unknown := set(prompt) - {*_ALLOWED, *_REFUSED}:
        raise InvalidRequestError(
            f"a prompt may hold {sorted(_ALLOWED)}, got {sorted(map(str, unknown))}", param=str(min(map(str, unknown)))
        )
    salt = {"cache_salt": prompt["cache_salt"]} if prompt.get("cache_salt") else {}
    if prompt.get("prompt_token_ids") is not None:
        return {"prompt_token_ids": tuple(prompt["prompt_token_ids"]), "shown_prompt": prompt.get("prompt"), **salt}
    return {"prompt": prompt.get("prompt"), **salt}


def parsed_prompt(prompt: Prompt, tokenizer: Tokenizer | None, options: Mapping[str, Any]) -> Prompt:
    """A text prompt as ids, tokenized by Hugging Face's options: add_special_tokens, and split_special_tokens, which
    is True where special tokens written in the text are text. Raises InvalidRequestError for another option.
    """
    for name, value in options.items():
        if name not in ("add_special_tokens", "split_special_tokens") or not isinstance(value, bool):
            raise InvalidRequestError(
                "tokenization_kwargs may hold add_special_tokens and split_special_tokens, true or false, "
                f"got {name!r}: {value!r:.80}",
                param="tokenization_kwargs",
            )
    fields = prompt_fields(prompt)
    if tokenizer is None or (text := fields.pop("prompt", None)) is None:
        return prompt
    ids = tokenizer.encode(
        text,
        add_special_tokens=options.get("add_special_tokens", True),
        parse_special=not options.get("split_special_tokens", True),
    )
    return {"prompt_token_ids": ids, "prompt": text, **fields}


def refuse_adapter(lora_request: object) -> None:
    """Raises InvalidRequestError unless there is none."""
    if lora_request is not None:
        raise InvalidRequestError("lora_request is not implemented: adapters are not loaded yet", param="lora_request")
