"""Which scope each route needs, looked up before routing. Making the table refuses a route without one."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from tuili.errors import InvalidRequestError
from tuili.server.dialect import Scope as RouteScope
from tuili.server.dialect import scope_of


class RouteScopes:
    """By the routes themselves, so that what is asked here is what will answer."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes: list[tuple[APIRoute, RouteScope]] = []
        for route in routes:
            if not isinstance(route, APIRoute):
                raise ValueError(f"route {getattr(route, 'path', type(route))!r} is no plain route of a router")
            needed = scope_of(route.openapi_extra)
            if needed not in ("public", "infer", "manage"):
                raise ValueError(f"route {route.path!r} does not say which scope it needs: give it scoped(...)")
            self._routes.append((route, needed))

    def scope_of(self, scope: Scope) -> RouteScope | None:
        """What a request needs; None where nothing answers it."""
        return next((needed for route, needed in self._routes if route.matches(scope)[0] is Match.FULL), None)


def check_path(scope: Scope) -> None:
    """Refuses control characters, which no route has and which patterns and logs read each in their own way."""
    if any(char < " " or char == "\x7f" for char in scope["path"]):
        raise InvalidRequestError("the path holds a control character")
