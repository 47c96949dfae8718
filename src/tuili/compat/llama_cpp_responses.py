"""Answers in the shapes of llama-cpp-python, which are OpenAI's: whole, or in chunks as they come."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tuili.runtime.outputs import CompletionOutput, RequestOutput
from tuili.types import Event, Failed, Finished, FinishReason, Logprob, TextDelta, TokenLogprobs

Decode = Callable[[Sequence[int]], str]


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
            logprobs = self._logprobs(ids, entries, 0 if output.prompt_logprobs else self._prompt_len)
        text = self._echo + completion.text
        usage = _usage(len(output.prompt_token_ids), len(token_ids))
        return {**self._head, "choices": [_text_choice(text, logprobs, completion.finish_reason)], "usage": usage}

    def chunks(self, events: Iterator[Event]) -> Iterator[dict[str, Any]]:
        if self._echo:
            yield {**self._head, "choices": [_text_choice(self._echo, None, None)]}
        offset = self._prompt_len
        for event in events:
            if isinstance(event, TextDelta) and event.text:
                entries = event.logprobs and self._logprobs(event.token_ids, event.logprobs, offset)
                offset += len(event.text)
                yield {**self._head, "choices": [_text_choice(event.text, entries or None, None)]}
            elif isinstance(event, Finished):
                yield {**self._head, "choices": [_text_choice("", None, event.finish_reason)]}
            elif isinstance(event, Failed):
                raise event.error

    def _logprobs(self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offset: int) -> dict[str, Any]:
        """The first token of a prompt has no probability: nothing predicts it."""
        texts = [self._decode([token_id]) for token_id in ids]
        offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "text_offset": offsets,
            "token_logprobs": [e and e[token_id].logprob for token_id, e in zip(ids, entries, strict=True)],
            "top_logprobs": [e and {self._decode([i]): value.logprob for i, value in e.items()} for e in entries],
        }


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
        for event in events:
            if isinstance(event, TextDelta) and event.text:
                logprobs = self._logprobs(event.token_ids, event.logprobs) if event.logprobs else None
                yield self._chunk({"content": event.text}, logprobs, None)
            elif isinstance(event, Finished):
                yield self._chunk({}, None, event.finish_reason)
            elif isinstance(event, Failed):
                raise event.error

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
        text = self._decode([token_id])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _told(completion: CompletionOutput) -> list[int]:
    """The answer's tokens without the one that ended it, which is none of the text."""
    ended_by_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
    return completion.token_ids[:-1] if ended_by_token else list(completion.token_ids)


def _text_choice(text: str, logprobs: dict[str, Any] | None, reason: FinishReason | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}


def _usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }
