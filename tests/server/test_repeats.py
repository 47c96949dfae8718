"""Who asks in the words of somebody just refused is refused alike; whatever else differs is looked at."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from support.served import small_app
from tuili.server import repeats as module
from tuili.server.door import Door
from tuili.server.guards.http_protocol import answer_bytes
from tuili.server.repeats import Words
from tuili.server.serving import Serving

WORDS = Words(b"hash", 300, "10.0.0.1")
DATE, LATER = b"Sun, 22 Nov 2026 08:00:00 GMT", b"Sun, 22 Nov 2026 08:00:01 GMT"


def refuse(door: Door, words: Words, host: bytes = b"localhost") -> bytes:
    """As the turnstile does."""
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/messages", "root_path": ""}
    scope |= {"http_version": "1.1", "headers": [(b"host", host), (b"user-agent", b"me")], "client": ("10.0.0.1", 5)}
    refusal = door.refusal(scope)
    assert refusal is not None
    answer = answer_bytes([(b"date", DATE)], refusal, closes=True)
    door.keep(words, scope, refusal, DATE, answer)
    return answer


@asynccontextmanager
async def full(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Door, Serving]]:
    """Two may wait, and do; somebody was looked at."""
    async with small_app(max_queued_requests=2, log_path=tmp_path / "log", **settings) as (app, _):
        door, serving = app.state.door, app.state.serving
        serving.admission.num_queued = 2
        assert door.refusal_of(WORDS, 0, DATE) is None
        yield door, serving


def request_id(answer: bytes) -> bytes:
    return answer.split(b"x-request-id: ")[1][:32]


async def test_the_same_words_are_told_the_same_under_an_id_of_their_own(tmp_path: Path) -> None:
    async with full(tmp_path) as (door, serving):
        answers = [refuse(door, WORDS)]
        answers += [again for _ in range(3) if (again := door.refusal_of(WORDS, 0, LATER)) is not None]
        assert len(answers) == serving.admission.num_refused == 4
        ids = [request_id(answer) for answer in answers]
        assert len(set(ids)) == 4
        told = {answer.replace(of, b"ID").replace(DATE, LATER) for answer, of in zip(answers, ids, strict=True)}
        assert len(told) == 1
        assert ids[3] in answers[3].partition(b"\r\n\r\n")[2], "Anthropic's errors name the request"
        assert door._log.counts["POST", "/v1/messages", 429] == 4
        assert door._log.flush()
        lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [line["request_id"].encode() for line in lines] == ids
    assert all(
        {**line, "request_id": 0, "time": 0, "ms": 0} == {**lines[0], "request_id": 0, "time": 0, "ms": 0}
        for line in lines
    )


async def test_a_line_tells_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "stamp", lambda: "2030-01-02T03:04:05Z")  # later than the line it is made of
    async with full(tmp_path) as (door, _):
        refuse(door, WORDS)
        assert door.refusal_of(WORDS, 0, LATER)
        assert door._log.flush()
        lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert lines[0]["time"] != lines[1]["time"] == "2030-01-02T03:04:05Z"


async def test_other_words_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    async with full(tmp_path) as (door, _):
        refuse(door, WORDS)
        others = [WORDS._replace(head=WORDS.head + b"x"), WORDS._replace(num_behind=301), WORDS._replace(address="")]
        assert [door.refusal_of(words, 0, DATE) for words in others] == [None] * 3
        assert b"403" in refuse(door, others[0], b"evil.example")[:15]
        assert door.refusal_of(others[0], 0, DATE) is None, "only what a full queue tells is kept"
        assert door.refusal_of(WORDS, 0, DATE) is not None
        refuse(door, others[1])
        refuse(door, others[2])
        assert door.refusal_of(WORDS, 0, DATE) is None, "no more are kept than may be"
        assert door.refusal_of(others[2], 0, DATE) is not None


async def test_what_was_told_counts_for_as_long_as_it_is_right(tmp_path: Path) -> None:
    async with full(tmp_path) as (door, serving):
        admission = serving.admission
        refuse(door, WORDS)
        admission.num_queued = 1
        assert door.refusal_of(WORDS, 0, DATE) is None, "there is room"
        assert door.refusal_of(WORDS, 1, DATE) is not None, "somebody else was let in who will take it"
        admission.num_queued = 3
        assert door.refusal_of(WORDS, 0, DATE) is None, "more wait than was told"
        assert b"3 requests are waiting" in refuse(door, WORDS)
        assert b"3 requests are waiting" in (door.refusal_of(WORDS, 0, DATE) or b"")
        serving.is_draining = True
        assert door.refusal_of(WORDS, 0, DATE) is None, "something else is to be told"
        assert b"503" in refuse(door, WORDS)[:15]
        assert door.refusal_of(WORDS, 0, DATE) is None


async def test_every_refused_request_has_a_span(tmp_path: Path) -> None:
    class Spans:
        def record(self, *_: object) -> None:
            """A span."""

        def close(self) -> None:
            """Nothing is open."""

    async with full(tmp_path, tracer=Spans()) as (door, _):
        refuse(door, WORDS)
        assert door.refusal_of(WORDS, 0, DATE) is None
