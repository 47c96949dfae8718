"""Which scope each route needs, looked up before routing. Making the table refuses a route without one."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from tuili.server.dialect import Scope as RouteScope
from tuili.server.dialect import scope_of


class RouteScopes:
    """By path, or by pattern for paths with parameters."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._exact: dict[tuple[str, str], RouteScope] = {}
        self._patterns: list[tuple[APIRoute, RouteScope]] = []
        for route in routes:
            if not isinstance(route, APIRoute):
                raise ValueError(f"route {getattr(route, 'path', type(route))!r} is no plain route of a router")
            needed = scope_of(route.openapi_extra)
            if needed not in ("public", "infer", "manage"):
                raise ValueError(f"route {route.path!r} does not say which scope it needs: give it scoped(...)")
            if "{" in route.path:
                self._patterns.append((route, needed))
            else:
                self._exact |= {(method, route.path): needed for method in route.methods or ()}

    def scope_of(self, scope: Scope) -> RouteScope | None:
        """What a request needs; None where nothing answers it."""
        found = self._exact.get((scope["method"], scope["path"]))
        if found is not None:
            return found
        for route, needed in self._patterns:
            if route.matches(scope)[0] is Match.FULL:
                return needed
        return None
