"""The operator's routes: health, readiness, version, metrics, what is running, models in and out."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

import tuili
from tuili.errors import EngineUnavailableError, TuiliError
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.answering import Answering, Part
from tuili.server.body import read_body
from tuili.server.dialect import Scope, scoped
from tuili.server.metrics import CONTENT_TYPE, exposition
from tuili.server.serving import Serving

MAX_HEARTBEAT_AGE_S = 5.0


class LoadBody(BaseModel):
    """A model to load, how long to keep it when idle, and whether never to evict it."""

    model_config = ConfigDict(extra="allow")
    model: str = Field(min_length=1, max_length=512)
    keep_alive_s: float | None = Field(None, ge=-1, le=10 * 365 * 86400)  # -1: for ever
    pin: bool = False


class UnloadBody(BaseModel):
    """A model to let go of."""

    model_config = ConfigDict(extra="allow")
    model: str = Field(min_length=1, max_length=512)


def json_response(value: Any, status: int = 200) -> Response:
    """A body of JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def ops_router(metrics_scope: Scope) -> APIRouter:
    """The routes; who may read metrics depends on who can reach the server."""
    router = APIRouter()
    for path in ("/health", "/v1/health", "/ping"):  # ours and vLLM's, llama-server's, vLLM's for hosts of models
        router.get(path, openapi_extra=scoped("public"))(health)
    router.post("/ping", openapi_extra=scoped("public"))(health)
    router.get("/load", openapi_extra=scoped("infer"))(server_load)
    router.get("/ready", openapi_extra=scoped("public"))(ready)
    router.get("/version", openapi_extra=scoped("infer"))(version)
    text = {"200": {"description": "Prometheus' text format", "content": {"text/plain": {}}}}
    router.get("/metrics", openapi_extra=scoped(metrics_scope, responses=text))(metrics)
    router.get("/v1/requests", openapi_extra=scoped("manage"))(requests)
    router.post("/v1/models/load", openapi_extra=scoped("manage", body=LoadBody))(load)
    router.post("/v1/models/unload", openapi_extra=scoped("manage", body=UnloadBody))(unload)
    return router


async def health(request: Request) -> Response:
    """Whether the HTTP process answers."""
    return json_response({"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether requests would be served: models named at start are loaded, nothing drains, engines get on.

    A server of several models is ready with those that are; the others are told with what is wrong.
    """
    serving: Serving = request.app.state.serving
    if serving.is_draining:
        raise EngineUnavailableError("the server is shutting down", retry_after_s=5)
    if (failure := serving.start_failure) is not None:
        why = str(failure) if isinstance(failure, TuiliError) else "the log says why"
        raise EngineUnavailableError(f"models named at start could not be loaded: {why}", retry_after_s=30)
    if not serving.is_started:
        raise EngineUnavailableError("models are loading", retry_after_s=2)
    found = {served.name: engine_fault(served) for served in serving.pool.loaded()}
    faults = {name: fault for name, fault in found.items() if fault is not None}
    if faults and len(faults) == len(found):
        told = "; ".join(f"model {name}: {fault}" for name, fault in faults.items())
        raise EngineUnavailableError(told, retry_after_s=2)
    answer: dict[str, Any] = {"status": "ready", "models": [name for name in found if name not in faults]}
    return json_response(answer | ({"unready": faults} if faults else {}))


def engine_fault(served: ServedModel) -> str | None:
    """What keeps a loaded model from answering."""
    state = served.client.health
    if not state.is_ready:
        return f"the engine is {state.state}"
    if state.heartbeat_age_s > MAX_HEARTBEAT_AGE_S:
        return f"the engine was last heard of {state.heartbeat_age_s:.0f} s ago"
    return None


async def version(request: Request) -> Response:
    """What runs here; by its name clients know that it is not another server with the same routes."""
    return json_response({"version": tuili.__version__, "server": "tuili"})


async def server_load(request: Request) -> Response:
    """How many requests are accepted and have not ended, as vLLM tells it to balancers."""
    serving: Serving = request.app.state.serving
    return json_response({"server_load": len(serving.running())})


async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    state = request.app.state
    return Response(exposition(state.serving, state.request_log), media_type=CONTENT_TYPE)


async def requests(request: Request) -> Response:
    """Everything that was accepted and has not ended, oldest first."""
    serving: Serving = request.app.state.serving
    now = time.monotonic()
    rows = [_row(answering, part, now) for answering in serving.running() for part in answering.parts]
    return json_response(
        {
            "object": "list",
            "data": rows,
            "queued_requests": serving.admission.num_queued,
            "queued_tokens": serving.admission.num_queued_tokens,
        }
    )


def _row(answering: Answering, part: Part, now: float) -> dict[str, Any]:
    since_first_s = 0.0 if part.first_token_s is None else now - part.first_token_s
    return {
        "id": part.request.request_id,
        "model": answering.model.name,
        "key": answering.caller.key_id,
        "address": answering.caller.address,
        "phase": part.phase,
        "prompt_tokens": len(part.prompt.token_ids),
        "computed_tokens": answering.prefill(part).num_computed,
        "cached_tokens": part.num_cached_tokens,
        "output_tokens": part.num_output_tokens,
        "tokens_per_s": round(part.num_output_tokens / since_first_s, 2) if since_first_s > 0 else 0.0,
        "age_s": round(now - answering.arrived_s, 3),
    }


async def load(request: Request) -> Response:
    """Loads a model, and pins it if asked to."""
    body = await read_body(request, LoadBody)
    serving: Serving = request.app.state.serving
    async with serving.use(body.model, keep_alive_s=body.keep_alive_s):
        served = await serving.pool.load(body.model, keep_alive_s=body.keep_alive_s, pin=body.pin)
    return json_response({"model": served.name, "max_model_len": served.front.max_model_len})


async def unload(request: Request) -> Response:
    """Lets go of a model, once what runs on it has ended."""
    body = await read_body(request, UnloadBody)
    serving: Serving = request.app.state.serving
    await serving.pool.unload(body.model)
    return json_response({"model": body.model})
