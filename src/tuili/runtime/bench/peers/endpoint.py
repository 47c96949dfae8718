"""Any server that speaks OpenAI's completions protocol, over streaming HTTP; its tokenizer and the wire are in it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tuili.errors import InvalidRequestError, PeerError
from tuili.runtime.bench.target import PeerFlags, PeerTarget
from tuili.runtime.bench.workload import Measurement, Trace, Workload

NAME = "URL"
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
_TIMEOUT_S = 600.0
_SHOWN = 200  # characters of an error's body


def check(flags: PeerFlags) -> None:
    """Raises InvalidRequestError for what is no URL."""
    _parsed(flags.url)


def open_peer(target: PeerTarget) -> Endpoint:
    """Raises PeerError where nothing answers."""
    return Endpoint(str(_parsed(target.url)), target.peer_model, target.api_key, random.Random(target.seed))


def _parsed(url: str | None) -> httpx.URL:
    if url is None:
        raise InvalidRequestError("against must be the server's URL, got 'URL'", param="against")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequestError(f"{url!a:.200} is no URL: {error}", param="against") from error
    if not parsed.host or "%" in parsed.host or not 0 < (parsed.port or 1) < 1 << 16:
        raise InvalidRequestError(f"{url!a:.200} is no URL: it names no host, or none's port", param="against")
    return parsed


class Endpoint:
    """Prompts are random words; tokens are counted as the server's usage says."""

    name = "endpoint"

    def __init__(self, url: str, model: str | None, api_key: str | None, rng: random.Random) -> None:
        """`url` is the server's root or ends in its version, as /v1; model None takes the first it lists.

        Raises InvalidRequestError for what is no URL, PeerError.
        """
        parsed = _parsed(url)
        self._base = str(parsed.copy_with(path=parsed.path.rstrip("/") or "/v1"))
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._rng = rng
        self._model = model or asyncio.run(self._first_model())

    def measure(self, workload: Workload) -> Measurement:
        """Raises PeerError."""
        prompts = [" ".join(self._rng.choices(WORDS, k=workload.prompt_len)) for _ in range(workload.num_seqs)]
        return Measurement.of(asyncio.run(self._run(prompts, workload.max_tokens)))

    def close(self) -> None:
        """Nothing is kept between measurements."""

    async def _first_model(self) -> str:
        async with self._client() as client:
            try:
                listed = _checked(await client.get(f"{self._base}/models"))
            except httpx.HTTPError as error:
                raise self._failure(error) from error
        try:
            return str(listed.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise PeerError(f"{self._base}/models lists no model: name one with --peer-model") from error

    async def _run(self, prompts: Sequence[str], max_tokens: int) -> Trace:
        async with self._client() as client:
            start = time.perf_counter()
            answers = [self._answer(client, prompt, max_tokens, start) for prompt in prompts]
            try:
                done = await asyncio.gather(*answers)
            except httpx.HTTPError as error:
                raise self._failure(error) from error
        return Trace(num_prompt_tokens=sum(n for n, _ in done), token_times_s=tuple(times for _, times in done))

    async def _answer(
        self, client: httpx.AsyncClient, prompt: str, max_tokens: int, start: float
    ) -> tuple[int, tuple[float, ...]]:
        """Prompt tokens, and when each token came."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
        times: list[float] = []
        usage: dict[str, int] = {}
        async with client.stream("POST", f"{self._base}/completions", json=body) as response:
            if not response.is_success:
                await response.aread()
            _checked(response)
            async for line in response.aiter_lines():
                event = _event(line)
                usage = event.get("usage") or usage
                if any(choice.get("text") for choice in event.get("choices", ())):
                    times.append(time.perf_counter() - start)
        if not times:
            raise PeerError(f"{self._base} streamed no text")
        return usage.get("prompt_tokens", len(prompt.split())), _spread(times, usage.get("completion_tokens"))

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(headers=self._headers, timeout=_TIMEOUT_S, limits=limits)

    def _failure(self, error: httpx.HTTPError) -> PeerError:
        return PeerError(f"{self._base} failed, {type(error).__name__}: {error}")


def _checked(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise PeerError(f"{response.url} answered {response.status_code}: {response.text[:_SHOWN]}")
    return response


def _event(line: str) -> dict[str, Any]:
    """The object of one server-sent event; empty for anything else. Raises PeerError for an error event."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return {}
    try:
        event: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise PeerError(f"a stream held {data[:_SHOWN]!r}, which is no JSON") from error
    if "error" in event:
        raise PeerError(f"a stream ended with {str(event['error'])[:_SHOWN]}")
    return event


def _spread(times: Sequence[float], num_tokens: int | None) -> tuple[float, ...]:
    """One time per token, where an event may carry several tokens or a token wait for its character's end."""
    count = num_tokens or len(times)
    last = len(times) - 1
    return tuple(times[last if i == count - 1 else min(last, i * len(times) // count)] for i in range(count))
