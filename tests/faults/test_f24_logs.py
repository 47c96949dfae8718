"""F24: the log's disk is full, standard output is closed, metrics are scraped without mercy: serving goes on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.plain_dialect import plain_dialect
from support.served import small_app
from tuili.server.api_keys import read_api_keys
from tuili.server.caller import Caller
from tuili.server.request_log import MAX_LINE_BYTES, RequestLog

SPOKEN = (plain_dialect(),)
BODY = {"prompts": ["abc"], "max_tokens": 2}


async def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    async with small_app(spoken=SPOKEN, log_path=Path("/dev/full")) as (app, client):
        for _ in range(20):
            assert (await client.post("/plain/generate", json=BODY)).status_code == 200
        assert await asyncio.to_thread(app.state.request_log.flush)
        assert app.state.request_log.num_dropped == 20
        assert b"tuili:log_lines_dropped_total 20.0" in (await client.get("/metrics")).content


@pytest.mark.parametrize("is_pipe", [False, True], ids=["closed", "pipe"])
async def test_a_closed_output_costs_lines_and_nothing_else(is_pipe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    async with small_app(spoken=SPOKEN, log_path=None) as (app, client):
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing) if is_pipe else None)
        assert (await client.post("/plain/generate", json=BODY)).status_code == 200
        assert await asyncio.to_thread(app.state.request_log.flush)
        monkeypatch.undo()
        assert app.state.request_log.num_dropped == 1
    os.close(writing)


async def test_a_pipe_that_nobody_reads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writing))
    log = RequestLog()
    scope = {"method": "GET", "path": "/" + "a" * 190, "headers": []}
    for number in range(2000):  # more than the pipe and what may wait hold
        log.add(scope, Caller(request_id=str(number)), 200, 0.1, 5)
    assert not log.flush(0.05)
    assert log.num_dropped > 0
    content = b""
    with os.fdopen(reading, "rb") as stream:  # somebody reads at last
        while b"dropped_lines" not in content:
            content += stream.read1()
            if log.flush(0.01):
                log.add(scope, Caller(request_id="last"), 200, 0.1, 5)
    told = [line for line in map(json.loads, content.splitlines()[:-1]) if "dropped_lines" in line]
    assert sum(line["dropped_lines"] for line in told) <= log.num_dropped
    log.close()
    monkeypatch.undo()
    os.close(writing)


def test_lines_that_were_dropped_are_counted_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("tuili.server.request_log.time.monotonic", lambda: now)
    log = RequestLog(tmp_path / "none" / "log")
    scope = {"method": "GET", "path": "/health", "headers": []}
    log.add(scope, Caller(request_id="1"), 200, 0.1, 5)
    assert log.flush()
    (tmp_path / "none").mkdir()
    log.add(scope, Caller(request_id="2"), 200, 0.1, 5)  # too soon to try again
    assert log.flush()
    now = 2.0
    log.add(scope, Caller(request_id="3"), 200, 0.1, 5)
    log.close()
    first, second = map(json.loads, (tmp_path / "none" / "log").read_text().splitlines())
    assert first == {"dropped_lines": 2}
    assert second["request_id"] == "3"


def test_a_line_is_one_line_of_bounded_length_whatever_was_sent(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log")
    hostile = "a\r\nb\x1b[31m\x00\u2028\u202e" * 100_000
    scope = {"method": "GET", "path": hostile, "headers": [(b"user-agent", hostile.encode("utf-8"))]}
    log.add(scope, Caller(request_id="1", notes={"model": hostile, "prompt_tokens": 5}), 200, 0.1, 5)
    log.close()
    content = (tmp_path / "log").read_bytes()
    assert content.count(b"\n") == 1
    assert len(content) <= MAX_LINE_BYTES
    record = json.loads(content)
    assert record["prompt_tokens"] == 5
    assert "\x1b" not in json.dumps(record, ensure_ascii=False)
    assert "\u202e" not in json.dumps(record, ensure_ascii=False)


async def test_prompts_and_keys_are_never_logged(tmp_path: Path) -> None:
    keys = read_api_keys(["a-secret-key"])
    async with small_app(spoken=SPOKEN, log_path=tmp_path / "log", api_keys=keys) as (_, client):
        headers = {"authorization": "Bearer a-secret-key"}
        body = {"prompts": ["averysecretprompt"], "max_tokens": 2}
        assert (await client.post("/plain/generate?key=a-secret-key", json=body, headers=headers)).status_code == 200
        await client.post("/plain/generate", content=b'{"averysecretprompt', headers=headers)
    content = (tmp_path / "log").read_text()
    assert len(content.splitlines()) == 2
    assert "secret" not in content
    assert json.loads(content.splitlines()[0])["prompt_tokens"] == 17


async def test_scrapers_without_mercy_stop_nothing() -> None:
    async with small_app(spoken=SPOKEN) as (_, client):
        scrapes = [asyncio.create_task(client.get("/metrics")) for _ in range(50)]
        answers = [asyncio.create_task(client.post("/plain/generate", json=BODY)) for _ in range(5)]
        assert {(await task).status_code for task in [*scrapes, *answers]} == {200}
        text = (await client.get("/metrics", headers={"accept": "text/html;q=1,*/*;q=0" * 100})).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert families["vllm:generation_tokens"].samples[0].value == 10
        assert families["vllm:time_to_first_token_seconds"].type == "histogram"
        served = {(s.labels["route"], s.labels["status"]): s.value for s in families["tuili:http_requests"].samples}
        assert served["/plain/generate", "200"] == 5
        assert served["/metrics", "200"] == 50
