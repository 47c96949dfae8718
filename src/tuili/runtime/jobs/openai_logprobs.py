"""Log probabilities of an answer in the two forms OpenAI's responses have for them."""

from __future__ import annotations

from typing import Any

from tuili.runtime.outputs import CompletionOutput
from tuili.types import Logprob, TokenLogprobs


def chat_logprobs(output: CompletionOutput, count: int) -> dict[str, Any] | None:
    """As chat completions have them, with `count` alternatives; None when none were asked for."""
    if output.logprobs is None:
        return None
    content = [
        {**_token(entry[chosen]), "top_logprobs": [_token(value) for value in _best(entry, count)]}
        for chosen, entry in zip(output.token_ids, output.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(output: CompletionOutput, count: int) -> dict[str, Any] | None:
    """As completions have them, with `count` alternatives; text_offset counts characters of the answer."""
    if output.logprobs is None:
        return None
    offsets, tokens, values, best = [], [], [], []
    offset = 0
    for chosen, entry in zip(output.token_ids, output.logprobs, strict=True):
        text = entry[chosen].decoded_token or ""
        offsets.append(offset)
        tokens.append(text)
        values.append(entry[chosen].logprob)
        best.append({value.decoded_token or "": value.logprob for value in _best(entry, count)})
        offset += len(text)
    return {"text_offset": offsets, "tokens": tokens, "token_logprobs": values, "top_logprobs": best}


def _best(entry: TokenLogprobs, count: int) -> list[Logprob]:
    """The `count` likeliest: an entry also holds the chosen token, wherever it ranks."""
    return sorted(entry.values(), key=lambda value: -value.logprob)[:count]


def _token(value: Logprob) -> dict[str, Any]:
    text = value.decoded_token or ""
    return {"token": text, "logprob": value.logprob, "bytes": list(text.encode())}
