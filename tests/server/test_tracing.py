"""Traces: what spans say, whose they are, and that nobody waits for them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.served import SmallPool, listening, small_app
from tuili.errors import InvalidRequestError
from tuili.server import tracing
from tuili.server.app import create_app
from tuili.server.http_settings import HttpSettings
from tuili.server.tracing import Tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "abcSECRET"
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 3},
    "/v1/completions": {"prompt": SECRET, "max_tokens": 3, "stream": True},
    "/v1/messages": {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 3},
    "/api/chat": {"messages": [{"role": "user", "content": SECRET}], "options": {"num_predict": 3}},
}


def spans_of(path: str, body: dict[str, object], headers: dict[str, str] | None = None) -> Sequence[ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    with listening(tracer=tracer) as server:
        httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60).read()
    return exporter.get_finished_spans()


@pytest.mark.parametrize("path", BODIES)
def test_a_span_tells_what_was_asked_and_how_it_went(path: str) -> None:
    asked = {"model": "small", "temperature": 0.5, "options": {}, **BODIES[path]}
    if path.startswith("/api"):
        asked["options"] = {"num_predict": 3, "temperature": 0.5}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "authorization": "Bearer SECRET-key"}
    (span,) = spans_of(path, asked, headers)
    told = dict(span.attributes or {})
    assert told["gen_ai.operation.name"] == ("text_completion" if path == "/v1/completions" else "chat")
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("small", "small")
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.temperature"]) == (3, 0.5)
    assert told["gen_ai.usage.prompt_tokens"] == told["gen_ai.usage.input_tokens"] >= len(SECRET)
    assert 1 <= told["gen_ai.usage.completion_tokens"] <= 3
    assert told["gen_ai.response.finish_reasons"][0] in ("length", "stop")
    assert told["gen_ai.latency.time_in_queue"] <= told["gen_ai.latency.time_to_first_token"]
    assert told["gen_ai.latency.time_to_first_token"] <= told["gen_ai.latency.e2e"]
    assert span.end_time - span.start_time == pytest.approx(told["gen_ai.latency.e2e"] * 1e9, abs=1e6)
    assert span.status.is_ok or span.status.status_code.name == "UNSET"
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert "SECRET" not in span.to_json()


def test_a_request_that_is_refused_has_a_span_and_one_that_asks_no_model_has_none() -> None:
    (span,) = spans_of("/v1/completions", {"model": "absent", "prompt": "a"})
    told = dict(span.attributes or {})
    assert (told["gen_ai.request.model"], told["http.response.status_code"], told["error.type"]) == (
        "absent",
        404,
        "404",
    )
    assert span.status.status_code.name == "ERROR"
    assert span.parent is None
    assert spans_of("/tokenize", {"prompt": "a"}) == ()


async def test_what_is_refused_before_its_body_is_read_has_a_span() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    async with small_app(tracer=tracer, max_queued_requests=1) as (app, client):
        with app.state.serving.accepted():
            refused = await client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
        await client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    told = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert [one["error.type"] for one in told] == ["429", "400"]
    assert told[0]["gen_ai.request.id"] == refused.headers["x-request-id"]
    assert "gen_ai.request.model" not in told[0]


def test_a_name_of_any_length_takes_little_room_while_its_span_waits() -> None:
    (span,) = spans_of("/v1/completions", {"model": "m" * 100_000, "prompt": "a"})
    assert 64 <= len(str(dict(span.attributes or {})["gen_ai.request.model"])) <= 512


class Stuck(SpanExporter):
    """Takes no span until it is let."""

    def __init__(self) -> None:
        self.has_begun, self.gate = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.has_begun.set()
        self.gate.wait(60)
        return SpanExportResult.SUCCESS


def test_a_collector_that_hangs_holds_up_neither_answers_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_S", 0.05)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    exporter = Stuck()
    with listening(tracer=Tracer(exporter)) as server:
        ask = {"model": "small", "prompt": "a", "max_tokens": 1}
        assert httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60).status_code == 200
        assert exporter.has_begun.wait(60)
        assert httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60).status_code == 200
    assert not exporter.gate.is_set()  # the server has ended all the same
    exporter.gate.set()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """The URL of something that takes traces, and the bodies it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        server.shutdown()
        thread.join()


def test_spans_arrive_at_a_collector(collector: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_S", 60.0)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, bodies = collector
    with listening(otlp_traces_endpoint=url) as server:
        ask = {"model": "small", "prompt": "a", "max_tokens": 1}
        httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60).raise_for_status()
    sent = ExportTraceServiceRequest.FromString(bodies[0])
    (resource,) = sent.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "ours"
    assert resource.scope_spans[0].spans[0].name == "llm_request"


def test_without_the_packages_the_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'tuili\[otel\]'"):
        create_app(HttpSettings(otlp_traces_endpoint="http://localhost:4318/v1/traces"), SmallPool())


def test_nothing_of_it_is_imported_before_it_is_asked_for() -> None:
    """FastAPI imports the interface where it is there."""
    code = (
        "import tuili.server.app, sys, json; names = [m for m in sys.modules if 'opentelemetry.' in m]; "
        "print(json.dumps([m for m in names if '.sdk' in m or '.exporter' in m]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
