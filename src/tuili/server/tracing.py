"""OpenTelemetry traces: a span for each request that asks a model, sent by a thread beside the event loop.

Attributes are those of the GenAI conventions, and vLLM's where those have none. No prompt, no answer, no key. Needs the
extra `otel`, which is imported when tracing is asked for and not before.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import tuili
from tuili.errors import InvalidRequestError
from tuili.server.answering import Answering, Part
from tuili.server.caller import Caller

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from starlette.types import Scope

_MISSING = "otlp_traces_endpoint needs packages that are not installed: pip install 'tuili[otel]'"
_CLOSE_S = 2.0
_SEND_TIMEOUT_S = 5.0
_MAX_TEXT_CHARS = 256  # of a value: thousands of spans may wait, and a request's own words can be as long as its body
_HEADERS = (b"traceparent", b"tracestate")
_COMPLETIONS = ("/v1/completions", "/api/generate")


class Tracer:
    """Makes spans of requests that have ended. Whoever cannot take them holds up nobody: then they are dropped."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Raises InvalidRequestError where the packages are missing."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidRequestError(_MISSING, param="otlp_traces_endpoint") from error
        # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say comes before this.
        ours = Resource({"service.name": "tuili", "service.version": tuili.__version__})
        self._provider = TracerProvider(resource=ours.merge(_told_resource()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tuili.server", tuili.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, caller: Caller, status: int, seconds: float) -> None:
        """The span of a request that has ended now; none for one that asked no model."""
        if not caller.asks_model and caller.asked_model is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        end_ns = time.time_ns()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        attributes = _attributes(scope["path"], caller, status, seconds)
        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=end_ns - round(seconds * 1e9),
            attributes={name: _short(value) for name, value in attributes.items()},
        )
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)

    def close(self) -> None:
        """Sends what waits, unless that takes too long."""
        closing = threading.Thread(target=self._provider.shutdown, name="tuili-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def open_tracer(endpoint: str) -> Tracer:
    """Sends spans to `endpoint`, beneath OTEL_EXPORTER_OTLP_HEADERS. Raises InvalidRequestError as Tracer."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise InvalidRequestError(_MISSING, param="otlp_traces_endpoint") from error
    return Tracer(OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_TIMEOUT_S))


def _told_resource() -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector

    return OTELResourceDetector().detect()


def _short(value: Any) -> Any:
    return value[:_MAX_TEXT_CHARS] if isinstance(value, str) else value


def _attributes(path: str, caller: Caller, status: int, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = {
        "gen_ai.operation.name": "text_completion" if path in _COMPLETIONS else "chat",
        "gen_ai.provider.name": "tuili",
        "gen_ai.request.id": caller.request_id,
        "gen_ai.latency.e2e": seconds,
        "http.response.status_code": status,
        "url.path": path,
    }
    if caller.asked_model is not None:
        told["gen_ai.request.model"] = caller.asked_model
    if status >= 400 or "error" in caller.notes:
        told["error.type"] = str(caller.notes.get("error", status))
    if isinstance(caller.answering, Answering):
        told |= _asked(caller.answering) | _answered(caller.answering)
    return told


def _asked(answering: Answering) -> dict[str, Any]:
    sampling = answering.requests[0].sampling
    told: dict[str, Any] = {
        "gen_ai.response.model": answering.model.name,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.n": sampling.n,
        "gen_ai.request.choice.count": sampling.n,
    }
    if sampling.max_tokens is not None:
        told["gen_ai.request.max_tokens"] = sampling.max_tokens
    return told


def _answered(answering: Answering) -> dict[str, Any]:
    """Sums over all prompts of the request, and times of the first."""
    parts = answering.parts
    num_prompt = sum(len(part.prompt.token_ids) for part in parts)
    num_output = sum(part.num_output_tokens for part in parts)
    answers = [part.answer for part in parts if part.answer is not None]
    return {
        "gen_ai.usage.prompt_tokens": num_prompt,
        "gen_ai.usage.completion_tokens": num_output,
        "gen_ai.usage.input_tokens": num_prompt,
        "gen_ai.usage.output_tokens": num_output,
        "gen_ai.usage.cache_read.input_tokens": sum(part.num_cached_tokens for part in parts),
        "gen_ai.usage.num_sequences": sum(part.num_sequences for part in parts),
        "gen_ai.response.finish_reasons": [reason for answer in answers for reason in answer.finish_reasons],
        **_times(answering, parts[0]),
    }


def _times(answering: Answering, part: Part) -> dict[str, float]:
    """In seconds, as far as the request came: to be served by the engine, and to its first token."""
    begun_s = None if part.answer is None else part.answer.scheduled_s
    first_s = part.first_token_s
    told: dict[str, float] = {}
    if begun_s is not None:
        told["gen_ai.latency.time_in_queue"] = max(begun_s - answering.arrived_s, 0.0)
    if first_s is not None:
        told["gen_ai.latency.time_to_first_token"] = first_s - answering.arrived_s
    if begun_s is not None and first_s is not None and answering.ended_s is not None:
        told["gen_ai.latency.time_in_model_prefill"] = first_s - begun_s
        told["gen_ai.latency.time_in_model_decode"] = answering.ended_s - first_s
        told["gen_ai.latency.time_in_model_inference"] = answering.ended_s - begun_s
    return told
