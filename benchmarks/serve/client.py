"""The load: HTTP exchanges over plain sockets, kept as bytes with their times and read only when all is over.

A client that parses while it measures would take the time it measures from a server on the same cores; for the same
reason its event loop is uvloop's.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import uvloop

Address = tuple[str, int]
Result = TypeVar("Result")
_LAST_CHUNK = b"0\r\n\r\n"


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """As asyncio.run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class Exchange(asyncio.Protocol):
    """One request on a connection of its own, and all that comes back. Await `ended`."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[tuple[float, bytes]] = []
        self.sent_s = self.ended_s = 0.0
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()  # the first bytes are here, or never will be
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.sent_s = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if not self.begun.done():
            self.begun.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended_s = time.perf_counter()
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_result(None)

    def leave(self) -> None:
        """As a client that was closed: the connection is reset."""
        self.transport.abort()


class Connection(asyncio.Protocol):
    """One that stays, as those of API clients do: one streamed exchange at a time, on one event loop."""

    def __init__(self) -> None:
        self._pieces: list[tuple[float, bytes]] = []
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    async def to(cls, address: Address) -> Connection:
        """Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))
        if data.endswith(_LAST_CHUNK):
            self._end()

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    async def ask(self, request: bytes) -> Reply:
        """The request must let the connection stay; the reply is cut short where the server ends it."""
        pieces = self._pieces = []
        self._ended = asyncio.get_running_loop().create_future()
        sent_s = time.perf_counter()
        self._transport.write(request)
        await self._ended
        return Reply(sent_s, time.perf_counter(), pieces)

    def close(self) -> None:
        self._transport.close()

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


@dataclass
class Reply:
    """What came back. Times are of time.perf_counter."""

    sent_s: float
    ended_s: float
    pieces: Sequence[tuple[float, bytes]] = field(repr=False)

    @cached_property
    def _parts(self) -> tuple[int, dict[str, str], list[tuple[float, bytes]]]:
        return _split(self.pieces)

    @property
    def status(self) -> int:
        """0: the connection ended before there was one."""
        return self._parts[0]

    @property
    def headers(self) -> Mapping[str, str]:
        return self._parts[1]

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self._parts[2])

    @property
    def seconds(self) -> float:
        return self.ended_s - self.sent_s

    @cached_property
    def events(self) -> list[tuple[float, Any]]:
        """Of a stream: when each had come as a whole, and what it says; [DONE] among them."""
        ends, times, size = [], [], 0
        for at_s, data in self._parts[2]:
            size += len(data)
            ends.append(size)
            times.append(at_s)
        found, position = [], 0
        for text in self.body.split(b"\n\n")[:-1]:
            position += len(text) + 2
            if text.startswith(b"data: "):
                payload = text[len(b"data: ") :]
                when = times[bisect_left(ends, position)]
                found.append((when, "[DONE]" if payload == b"[DONE]" else json.loads(payload)))
        return found

    @cached_property
    def news(self) -> list[tuple[float, Mapping[str, Any]]]:
        """The choices of a stream that bring text, with their times."""
        choices = [(at, e["choices"][0]) for at, e in self.events if e != "[DONE]" and e.get("choices")]
        return [(at, choice) for at, choice in choices if choice.get("text")]

    @property
    def text(self) -> str:
        return "".join(choice["text"] for _, choice in self.news)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Where the request asked for them."""
        choices = [event["choices"][0] for _, event in self.events if event != "[DONE]" and event.get("choices")]
        return tuple(token for choice in choices for token in choice.get("token_ids") or ())

    @property
    def num_tokens(self) -> int:
        """As the stream's usage says; 0 for one that told none."""
        told = [event["usage"] for _, event in self.events if event != "[DONE]" and event.get("usage")]
        return int(told[-1]["completion_tokens"]) if told else 0

    @property
    def num_prompt_tokens(self) -> int:
        """As the stream's usage says; 0 for one that told none."""
        told = [event["usage"] for _, event in self.events if event != "[DONE]" and event.get("usage")]
        return int(told[-1]["prompt_tokens"]) if told else 0

    def num_tokens_between(self, from_s: float, until_s: float) -> int:
        """Those that came in [from_s, until_s), where the request asked for token_ids."""
        choices = ((at, e["choices"][0]) for at, e in self.events if e != "[DONE]" and e.get("choices"))
        return sum(len(choice.get("token_ids") or ()) for at, choice in choices if from_s <= at < until_s)

    @property
    def is_whole(self) -> bool:
        """A stream that ended as it should, in no error."""
        events = [event for _, event in self.events]
        return self.status == 200 and bool(events) and events[-1] == "[DONE]" and not any("error" in e for e in events)

    @property
    def ttft_s(self) -> float:
        return self.news[0][0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """What a reader waits between one piece of news and the next."""
        return [after - before for (before, _), (after, _) in pairwise(self.news)]


def post(path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request; a body of bytes goes as it is. The connection ends with it unless headers say not."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})


def get(path: str) -> bytes:
    return _request("GET", path, b"", {})


def _request(method: str, path: str, data: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in {"Connection": "close", **headers}.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def begin(address: Address, request: bytes) -> Exchange:
    """Connects and sends. Raises OSError."""
    _, exchange = await asyncio.get_running_loop().create_connection(lambda: Exchange(request), *address)
    return exchange


async def ask(address: Address, request: bytes) -> Reply:
    """One exchange from beginning to end; a server that is not there is a reply without status."""
    started_s = time.perf_counter()
    try:
        exchange = await begin(address, request)
    except OSError:
        return Reply(started_s, time.perf_counter(), [])
    try:
        await exchange.ended
    finally:
        exchange.leave()
    return Reply(started_s, exchange.ended_s, exchange.pieces)


def percentiles_ms(seconds: Sequence[float], name: str) -> dict[str, float]:
    """p50 and p99, as columns of a row."""
    return {f"{name}_p{q}_ms": round(float(np.percentile(seconds, q)) * 1e3, 2) for q in (50, 99)} if seconds else {}


def _split(pieces: Sequence[tuple[float, bytes]]) -> tuple[int, dict[str, str], list[tuple[float, bytes]]]:
    """Status, headers, and the body without its chunks' frames, each piece with its time."""
    raw = b"".join(data for _, data in pieces)
    head, found, _ = raw.partition(b"\r\n\r\n")
    if not found:
        return 0, {}, []
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    ends, times, size = [], [], 0
    for at_s, data in pieces:
        size += len(data)
        ends.append(size)
        times.append(at_s)
    start = len(head) + 4
    if headers.get("transfer-encoding") != "chunked":
        return int(lines[0].split()[1]), headers, [(times[-1], raw[start:])]
    body = []
    while (line_end := raw.find(b"\r\n", start)) > 0 and (length := int(raw[start:line_end], 16)):
        end = line_end + 2 + length
        if end > len(raw):  # cut within a chunk
            break
        body.append((times[bisect_left(ends, end)], raw[line_end + 2 : end]))
        start = end + 2
    return int(lines[0].split()[1]), headers, body
