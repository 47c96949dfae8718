"""What a wire format brings to the server: its routes, who may call them, and how it writes errors and streams.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import InvalidRequestError, TuiliError
from tuili.runtime.pool.served_model import ModelCard
from tuili.types import Event


class Progress(NamedTuple):
    """How far prompts have come, in tokens, and since when they are computed."""

    num_computed: int
    num_prompt: int
    num_cached: int = 0  # of those computed: found in the cache
    elapsed_s: float = 0.0


Scope = Literal["public", "infer", "manage"]
MissingRoute = tuple[str, str, Scope, str]  # method, path, scope, what is missing
_MODEL_PATHS = ("/v1/models", "/models")
_SCOPE, _QUEUES = "x-scope", "x-queues"


def scoped(
    scope: Scope,
    *,
    body: type[BaseModel] | None = None,
    streams: str | None = None,
    is_queued: bool = False,
    **extra: Any,
) -> dict[str, Any]:
    """A route's openapi_extra: who may call it, beside what else its OpenAPI entry says.

    `body` is what read_body is called with, `streams` the media type of streamed answers. is_queued: all it is asked
    for waits for an engine, so that a full queue refuses it unread. A route that does not say its scope is refused
    when the application is made.
    """
    entry: dict[str, Any] = {_SCOPE: scope, **({_QUEUES: True} if is_queued else {}), **extra}
    if body is not None:
        place = body.__module__.split(".")[-2]  # dialects may call different things the same
        schema = body.model_json_schema(ref_template=f"#/components/schemas/{place}.{{model}}")
        if "$defs" in schema:
            schema["$defs"] = {f"{place}.{name}": inner for name, inner in schema["$defs"].items()}
        entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if streams is not None:
        entry["responses"] = {"200": {"description": "The answer", "content": {"application/json": {}, streams: {}}}}
    return entry


def scope_of(openapi_extra: Mapping[str, Any] | None) -> Scope | None:
    """What `scoped` put there, None for a route that says nothing."""
    return (openapi_extra or {}).get(_SCOPE)


def queues(openapi_extra: Mapping[str, Any] | None) -> bool:
    """Whether all that a route is asked for waits for an engine."""
    return bool((openapi_extra or {}).get(_QUEUES))


def add_missing(router: APIRouter, routes: Iterable[MissingRoute]) -> None:
    """Routes that clients know and that are not there yet, so that each says so by name."""
    for method, path, scope, why in routes:
        router.add_api_route(path, _refusal(path, why), methods=[method], openapi_extra=scoped(scope))


def _refusal(path: str, why: str) -> Callable[[Request], Awaitable[Response]]:
    name = path.partition("/{")[0]

    async def refuse(request: Request) -> Response:
        raise InvalidRequestError(f"{name} is not implemented: {why}")

    refuse.__doc__ = "Not implemented yet."
    return refuse


def is_model_list(path: str) -> bool:
    """Whether several wire formats have that path, to list models or tell of one."""
    return path in _MODEL_PATHS or path.startswith("/v1/models/")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelList:
    """How a wire format lists models at /v1/models, a path that several have."""

    header: str | None  # by which its clients are known; None: all others
    page: Callable[[Sequence[ModelCard], Mapping[str, str]], Any]  # (every model, query) -> what becomes JSON
    entry: Callable[[ModelCard, str], Any]  # (model, the name it was asked by)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """A wire format: the paths it answers under, and how it tells what went wrong."""

    name: str
    prefixes: tuple[str, ...]  # an error under one of these, the longest that fits, is told by render_error
    router: APIRouter
    render_error: Callable[[TuiliError, str], bytes]  # (error, request id) -> the body
    models: ModelList | None = None


class StreamRenderer(Protocol):
    """Writes one streamed answer. Pure: events in, bytes out; every call may give none."""

    media_type: str

    def start(self) -> bytes:
        """What comes before the first token."""
        ...

    def push(self, events: Sequence[tuple[int, Event]]) -> bytes:
        """(index of the request, event) of one step or several; with the last Done, also what ends the stream."""
        ...

    def fail(self, error: TuiliError) -> bytes:
        """One error event, after which the connection is closed."""
        ...

    def keep_alive(self, progress: Progress) -> bytes:
        """What tells a waiting client that its prompts are being computed."""
        ...
