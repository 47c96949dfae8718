"""Answers in the shapes of llama-cpp-python, which are OpenAI's: whole, or in chunks as they come."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from tuili.runtime.api.outputs import CompletionOutput, RequestOutput
from tuili.types import Event, Failed, Finished, FinishReason, Logprob, TextDelta, TokenLogprobs

Decode = Callable[[Sequence[int]], bytes]  # of one token it may end inside a character


class Responder(Protocol):
    """Makes a request's answer, or its chunks."""

    def response(self, output: RequestOutput) -> dict[str, Any]: ...

    def chunks(self, events: Iterator[Event]) -> Iterator[dict[str, Any]]: ...


class CompletionResponder:
    """Text completions. `echo` goes before the text; prompt_len is where the text begins, in characters."""

    def __init__(self, model: str, decode: Decode, echo: str, prompt_len: int) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._decode = decode
        self._echo = echo
        self._prompt_len = prompt_len

    def response(self, output: RequestOutput) -> dict[str, Any]:
        completion = output.outputs[0]
        token_ids = _told(completion)
        logprobs = None
        if completion.logprobs is not None:
            ids: list[int] = token_ids
            entries: list[TokenLogprobs | None] = [*completion.logprobs[: len(token_ids)]]
            if output.prompt_logprobs is not None:
                ids, entries = output.prompt_token_ids + ids, [*output.prompt_logprobs, *entries]
            places = _Places(0 if output.prompt_logprobs else self._prompt_len)
            logprobs = self._logprobs(ids, entries, places)
        text = self._echo + completion.text
        usage = _usage(len(output.prompt_token_ids), len(token_ids))
        return {**self._head, "choices": [_text_choice(text, logprobs, completion.finish_reason)], "usage": usage}

    def chunks(self, events: Iterator[Event]) -> Iterator[dict[str, Any]]:
        if self._echo:
            yield {**self._head, "choices": [_text_choice(self._echo, None, None)]}
        places = _Places(self._prompt_len)
        for piece in _pieces(events):
            if isinstance(piece, Finished):
                yield {**self._head, "choices": [_text_choice("", None, piece.finish_reason)]}
            else:
                logprobs = self._logprobs(piece.token_ids, piece.logprobs, places) if piece.logprobs else None
                yield {**self._head, "choices": [_text_choice(piece.text, logprobs, None)]}

    def _logprobs(self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], places: _Places) -> dict[str, Any]:
        """The first token of a prompt has no probability: nothing predicts it."""
        return {
            "tokens": list(map(self._text, ids)),
            "text_offset": [places.next(self._decode([token_id])) for token_id in ids],
            "token_logprobs": [e and e[token_id].logprob for token_id, e in zip(ids, entries, strict=True)],
            "top_logprobs": [e and {self._text(i): value.logprob for i, value in e.items()} for e in entries],
        }

    def _text(self, token_id: int) -> str:
        return self._decode([token_id]).decode(errors="ignore")


class ChatResponder:
    """Chat completions; top_logprobs alternatives are told beside each token."""

    def __init__(self, model: str, decode: Decode, top_logprobs: int) -> None:
        self._id = f"chatcmpl-{uuid.uuid4()}"
        self._rest = {"created": int(time.time()), "model": model}
        self._decode = decode
        self._top_logprobs = top_logprobs

    def response(self, output: RequestOutput) -> dict[str, Any]:
        completion = output.outputs[0]
        token_ids = _told(completion)
        logprobs = None
        if completion.logprobs is not None:
            logprobs = self._logprobs(token_ids, completion.logprobs[: len(token_ids)])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text},
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
        }
        usage = _usage(len(output.prompt_token_ids), len(token_ids))
        return {"id": self._id, "object": "chat.completion", **self._rest, "choices": [choice], "usage": usage}

    def chunks(self, events: Iterator[Event]) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant"}, None, None)
        for piece in _pieces(events):
            if isinstance(piece, Finished):
                yield self._chunk({}, None, piece.finish_reason)
            else:
                logprobs = self._logprobs(piece.token_ids, piece.logprobs) if piece.logprobs else None
                yield self._chunk({"content": piece.text}, logprobs, None)

    def _chunk(
        self, delta: dict[str, str], logprobs: dict[str, Any] | None, reason: FinishReason | None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {"id": self._id, "object": "chat.completion.chunk", **self._rest, "choices": [choice]}

    def _logprobs(self, ids: Sequence[int], entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        content = []
        for token_id, entry in zip(ids, entries, strict=True):
            best = [self._token(i, found.logprob) for i, found in entry.items() if self._is_told(found)]
            content.append({**self._token(token_id, entry[token_id].logprob), "top_logprobs": best})
        return {"content": content, "refusal": None}

    def _is_told(self, found: Logprob) -> bool:
        return found.rank is not None and found.rank <= self._top_logprobs

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._decode([token_id])
        return {"token": data.decode(errors="ignore"), "logprob": logprob, "bytes": list(data)}


class _Places:
    """Where the text of each token begins, in characters; tokens that share a character begin where it does."""

    def __init__(self, start: int) -> None:
        self._next = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def next(self, data: bytes) -> int:
        """Of the next token, whose bytes these are."""
        place = self._next
        self._next += len(self._decoder.decode(data))
        return place


class _Piece(NamedTuple):
    """Text of an answer and the tokens told with it; logprobs are empty unless they were asked for."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]


def _pieces(events: Iterator[Event]) -> Iterator[_Piece | Finished]:
    """Tokens whose text is held back come with the next text, or at the end. Raises what made the answer fail."""
    ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    rest = ""
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, TextDelta):
            ids += event.token_ids
            logprobs += event.logprobs or ()
            if not event.token_ids:  # only at the end, when the token that ended it is already among `ids`
                rest += event.text
            elif event.text:
                yield _Piece(event.text, ids, logprobs)
                ids, logprobs = [], []
        elif isinstance(event, Finished):
            if _is_ended_by_token(event.finish_reason, event.stop_reason):
                ids, logprobs = ids[:-1], logprobs[:-1]
            if rest or logprobs:
                yield _Piece(rest, ids, logprobs)
            yield event


def _told(completion: CompletionOutput) -> list[int]:
    """The answer's tokens without the one that ended it, which is none of the text."""
    is_ended = _is_ended_by_token(completion.finish_reason, completion.stop_reason)
    return completion.token_ids[:-1] if is_ended else list(completion.token_ids)


def _is_ended_by_token(finish_reason: FinishReason | None, stop_reason: str | int | None) -> bool:
    return finish_reason == "stop" and not isinstance(stop_reason, str)


def _text_choice(text: str, logprobs: dict[str, Any] | None, reason: FinishReason | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}


def _usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }
