"""Log probabilities in the two forms OpenAI's responses have for them, a token at a time: streams have them, too."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from tuili.types import Logprob, TokenLogprobs

LEAST = -9999.0  # JSON has no infinity
TokenBytes = Callable[[int, Logprob | None], bytes]  # of a token; the entry may know its text


def decoded_bytes(token_id: int, value: Logprob | None) -> bytes:
    """What an entry says by itself: where no tokenizer is at hand."""
    return ("" if value is None else value.decoded_token or "").encode()


class ChatLogprobs:
    """As chat completions have them, with `count` alternatives."""

    def __init__(self, count: int, token_bytes: TokenBytes, *, as_ids: bool = False) -> None:
        self._count = count
        self._bytes = token_bytes
        self._as_ids = as_ids

    def entry(self, token_id: int, found: TokenLogprobs) -> dict[str, Any]:
        """Of one token of the answer."""
        best = [self._token(i, value) for i, value in _best(found, self._count)]
        return {**self._token(token_id, found[token_id]), "top_logprobs": best}

    def _token(self, token_id: int, value: Logprob) -> dict[str, Any]:
        data = self._bytes(token_id, value)
        token = f"token_id:{token_id}" if self._as_ids else _text(data) or _escaped(data)
        return {"token": token, "logprob": max(value.logprob, LEAST), "bytes": list(data)}


class CompletionLogprobs:
    """As completions have them: lists that grow by one entry a token. Alternatives: the `count` best and the chosen.

    text_offset counts characters. `echoed` is the prompt where that is told, too: what its tokens do not spell takes no
    room in it, as a token that marks the beginning.
    """

    def __init__(self, count: int, token_bytes: TokenBytes, *, as_ids: bool = False, echoed: str = "") -> None:
        self._count = count
        self._bytes = token_bytes
        self._as_ids = as_ids
        self._echoed = echoed
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, lists: dict[str, list[Any]], token_id: int, found: TokenLogprobs | None, *, is_shown: bool) -> None:
        """Appends a token's entries to lists made by `empty`. A prompt's first token has no probability."""
        chosen = None if found is None else found[token_id]
        data = self._bytes(token_id, chosen)
        lists["tokens"].append(self._name(token_id, data))
        lists["token_logprobs"].append(None if chosen is None else max(chosen.logprob, LEAST))
        lists["top_logprobs"].append(None if found is None else self._alternatives(token_id, found))
        lists["text_offset"].append(self._place)
        text = self._decoder.decode(data)
        if is_shown:
            self._place += len(text) if self._place >= len(self._echoed) else self._num_echoed(text)

    def end_prompt(self) -> None:
        """What comes now is the answer."""
        self._place = len(self._echoed)

    def _num_echoed(self, text: str) -> int:
        """A first token may begin with a space that stands for the beginning."""
        spelled = (text, text.removeprefix(" "))
        return next((len(one) for one in spelled if self._echoed.startswith(one, self._place)), 0)

    @staticmethod
    def empty() -> dict[str, list[Any]]:
        """The lists before the first token."""
        return {"text_offset": [], "tokens": [], "token_logprobs": [], "top_logprobs": []}

    def _alternatives(self, token_id: int, found: TokenLogprobs) -> dict[str, float]:
        told: dict[str, float] = {}
        for i, value in [*_best(found, self._count), (token_id, found[token_id])]:
            told.setdefault(self._name(i, self._bytes(i, value)), max(value.logprob, LEAST))
        return told

    def _name(self, token_id: int, data: bytes) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        text = _text(data)
        return f"bytes:{_escaped(data)}" if text is None else text


def prompt_logprobs(entries: Sequence[TokenLogprobs | None], token_bytes: TokenBytes) -> list[dict[str, Any] | None]:
    """As vLLM has them: of each prompt token an object by token id, None for the first."""
    return [
        None
        if found is None
        else {
            str(i): {
                "logprob": max(value.logprob, LEAST),
                "rank": value.rank,
                "decoded_token": token_bytes(i, value).decode("utf-8", "replace"),
            }
            for i, value in found.items()
        }
        for found in entries
    ]


def _best(found: TokenLogprobs, count: int) -> list[tuple[int, Logprob]]:
    """The `count` likeliest: an entry also holds the chosen token, wherever it ranks."""
    return sorted(found.items(), key=lambda item: -item[1].logprob)[:count]


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _escaped(data: bytes) -> str:
    """Bytes that are no text by themselves, as OpenAI writes them."""
    return "".join(f"\\x{byte:02x}" for byte in data)
