"""Puts the server together: guards, dialects, operations, errors. No route without a scope."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

import tuili
from tuili import registry
from tuili.errors import InvalidRequestError, MethodNotAllowedError, RouteNotFoundError, TuiliError
from tuili.runtime.pool.model_pool import ModelPool
from tuili.server import dialects
from tuili.server.dialect import Dialect, scoped
from tuili.server.dispatch import Dispatch
from tuili.server.door import Door
from tuili.server.edge import Edge
from tuili.server.error_bodies import ErrorBodies
from tuili.server.guards.bind import is_loopback
from tuili.server.guards.layer import GuardLayer, Guards
from tuili.server.guards.route_scopes import RouteScopes
from tuili.server.http_settings import HttpSettings
from tuili.server.model_list import model_list_router
from tuili.server.openapi import document
from tuili.server.ops import json_response, ops_router
from tuili.server.request_log import RequestLog
from tuili.server.serving import Serving
from tuili.server.tracing import Tracer, open_tracer


def all_dialects() -> tuple[Dialect, ...]:
    """The wire formats that are installed."""
    return tuple(module.DIALECT for module in registry.discover(dialects).values())


def create_app(
    settings: HttpSettings, pool: ModelPool, *, spoken: Sequence[Dialect] | None = None, tracer: Tracer | None = None
) -> FastAPI:
    """The application over a pool, which it starts and closes. `spoken` and `tracer` are for tests.

    Raises ValueError for a route that does not say who may call it, InvalidRequestError where tracing needs what is
    not installed.
    """
    if settings.otlp_traces_endpoint is not None:
        tracer = open_tracer(settings.otlp_traces_endpoint)
    spoken = all_dialects() if spoken is None else tuple(spoken)
    serving, log = Serving(settings, pool), RequestLog(settings.log_path)
    app = FastAPI(
        title="tuili", version=tuili.__version__, openapi_url=None, docs_url=None, redoc_url=None, lifespan=_lifespan
    )
    app.state.serving, app.state.request_log, app.state.tracer = serving, log, tracer
    app.add_api_route("/openapi.json", _openapi, openapi_extra=scoped("infer"), methods=["GET"])
    routers = [ops_router("public" if is_loopback(settings.host) else "infer"), model_list_router(spoken)]
    routers += [dialect.router for dialect in spoken]
    for router in routers:  # kept flat: include_router would hide routes from the check of scopes
        app.router.routes += router.routes
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    scopes, bodies = RouteScopes(app.routes), ErrorBodies(spoken)
    guards = Guards(settings, scopes)
    app.user_middleware[:] = [
        Middleware(Edge, bodies=bodies, log=log, tracer=tracer),
        Middleware(GuardLayer, guards=guards),
        Middleware(Dispatch, routes=scopes, check_room=serving.check_room),
    ]
    app.state.door = Door(serving, routes=scopes, check=guards.check, bodies=bodies, log=log, tracer=tracer)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Listens while models load, so that health can be asked for; /ready tells when they have."""
    serving: Serving = app.state.serving
    serving.start()
    try:
        yield
    finally:
        await serving.aclose()
        app.state.request_log.close()
        if app.state.tracer is not None:
            await asyncio.to_thread(app.state.tracer.close)


async def _openapi(request: Request) -> Response:
    """This document."""
    return json_response(document(request.app, tuili.__version__))


async def _refuse(request: Request, error: Exception) -> NoReturn:
    """What the router says, as errors of ours."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        raise RouteNotFoundError(f"there is nothing at {request.url.path}")
    if error.status_code == 405:
        scope = request.scope
        matching = [route for route in request.app.routes if route.matches(scope)[0] is not Match.NONE]
        matching = [route for route in matching if route.path == get_route_path(scope)] or matching
        allowed = tuple(sorted({method for route in matching for method in route.methods}))
        raise MethodNotAllowedError(f"{request.method} is not allowed at {request.url.path}", allowed=allowed)
    raise InvalidRequestError(str(error.detail)) if error.status_code < 500 else TuiliError(str(error.detail))


async def _refuse_parameter(request: Request, error: Exception) -> NoReturn:
    """A parameter of a path or a query that is none."""
    assert isinstance(error, RequestValidationError)
    fault: dict[str, Any] = error.errors()[0]
    name = str(fault["loc"][-1])
    raise InvalidRequestError(f"{name}: {fault['msg']}", param=name)
