"""The greeting at /, and the endpoints of Ollama's that are not there yet, each saying what is missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tuili.errors import InvalidRequestError
from tuili.server.dialect import Scope, scoped

GREETING = "Ollama is running"
_PAGE = """<!doctype html>
<title>tuili</title>
<h1>tuili is running</h1>
<p>Point a client at this address:</p>
<ul>
<li>OpenAI: <code>/v1</code></li>
<li>Ollama: <code>/</code></li>
<li>Anthropic: <code>/</code></li>
</ul>
<p>See also <a href="/openapi.json">/openapi.json</a>, <a href="/health">/health</a> and
<a href="/metrics">/metrics</a>.</p>
"""
_TEXT = {"200": {"description": "A greeting", "content": {"text/plain": {}, "text/html": {}}}}
_MISSING: tuple[tuple[str, str, Scope, str], ...] = (
    ("POST", "/api/embed", "infer", "embeddings do not exist yet"),
    ("POST", "/api/embeddings", "infer", "embeddings do not exist yet"),
    ("POST", "/api/create", "manage", "models are not made here yet: `tuili pull` or `tuili cp` one"),
    ("POST", "/api/push", "manage", "models are not published from here yet"),
    ("HEAD", "/api/blobs/{digest}", "manage", "files are uploaded to make models, which does not exist yet"),
    ("POST", "/api/blobs/{digest}", "manage", "files are uploaded to make models, which does not exist yet"),
)


def add_other_routes(router: APIRouter) -> None:
    """These routes."""
    router.api_route("/", methods=["GET", "HEAD"], openapi_extra=scoped("public", responses=_TEXT))(greet)
    for method, path, scope, why in _MISSING:
        router.add_api_route(path, _refusal(path, why), methods=[method], openapi_extra=scoped(scope))


async def greet(request: Request) -> Response:
    """What Ollama's clients look for; a page for people."""
    accepts_html = "text/html" in request.headers.get("accept", "")
    return Response(_PAGE if accepts_html else GREETING, media_type="text/html" if accepts_html else "text/plain")


def _refusal(path: str, why: str) -> Callable[[Request], Awaitable[Response]]:
    name = path.partition("/{")[0]

    async def refuse(request: Request) -> Response:
        raise InvalidRequestError(f"{name} is not implemented: {why}")

    refuse.__doc__ = "Not implemented yet."
    return refuse
