"""The greeting at /, and the endpoints of Ollama's that are not there yet, each saying what is missing."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tuili.server.dialect import MissingRoute, add_missing, scoped

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
_NO_CLOUD = "there are no accounts and no cloud"
_MISSING: tuple[MissingRoute, ...] = (
    ("POST", "/api/embed", "infer", "embeddings do not exist yet"),
    ("POST", "/api/embeddings", "infer", "embeddings do not exist yet"),
    ("POST", "/api/create", "manage", "models are not made here yet: `tuili pull` or `tuili cp` one"),
    ("POST", "/api/push", "manage", "models are not published from here yet"),
    ("HEAD", "/api/blobs/{digest}", "manage", "files are uploaded to make models, which does not exist yet"),
    ("GET", "/api/status", "infer", _NO_CLOUD),
    ("POST", "/api/me", "infer", _NO_CLOUD),
    ("POST", "/api/signout", "infer", _NO_CLOUD),
    ("POST", "/api/experimental/web_search", "infer", "models do not search"),
    ("POST", "/api/experimental/web_fetch", "infer", "models do not search"),
    ("POST", "/api/blobs/{digest}", "manage", "files are uploaded to make models, which does not exist yet"),
)


def add_other_routes(router: APIRouter) -> None:
    """These routes."""
    router.api_route("/", methods=["GET", "HEAD"], openapi_extra=scoped("public", responses=_TEXT))(greet)
    add_missing(router, _MISSING)


async def greet(request: Request) -> Response:
    """What Ollama's clients look for; a page for people."""
    accepts_html = "text/html" in request.headers.get("accept", "")
    return Response(_PAGE if accepts_html else GREETING, media_type="text/html" if accepts_html else "text/plain")
