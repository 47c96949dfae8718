"""Which scope each route needs, looked up before routing. Making the table refuses a route without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastapi.routing import APIRoute
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from tuili.errors import InvalidRequestError
from tuili.server.dialect import Scope as RouteScope
from tuili.server.dialect import queues, scope_of


class KnownRoute(NamedTuple):
    """A route, who may use it, and whether who asks may have to wait."""

    route: APIRoute
    needed: RouteScope
    queues: bool


class RouteScopes:
    """By the routes themselves, so that what is asked here is what will answer."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = [_known(route) for route in routes]
        self._plain: dict[tuple[str, str], KnownRoute] = {}  # paths without parameters, by method and path
        for known in self._routes:
            for method in () if "{" in known.route.path else known.route.methods or ():
                if self._first({"type": "http", "method": method, "path": known.route.path}) is known:
                    self._plain[method, known.route.path] = known

    def plain(self, scope: Scope) -> KnownRoute | None:
        """What answers, if its path has no parameters."""
        return self._plain.get((scope["method"], get_route_path(scope)))

    def plain_routes(self) -> Sequence[APIRoute]:
        return [known.route for known in self._plain.values()]

    def scope_of(self, scope: Scope) -> RouteScope | None:
        """What a request needs; None where nothing answers it."""
        found = self.plain(scope) or self._first(scope)
        return None if found is None else found.needed

    def _first(self, scope: Scope) -> KnownRoute | None:
        return next((known for known in self._routes if known.route.matches(scope)[0] is Match.FULL), None)


def _known(route: BaseRoute) -> KnownRoute:
    if not isinstance(route, APIRoute):
        raise ValueError(f"route {getattr(route, 'path', type(route))!r} is no plain route of a router")
    needed = scope_of(route.openapi_extra)
    if needed not in ("public", "infer", "manage"):
        raise ValueError(f"route {route.path!r} does not say which scope it needs: give it scoped(...)")
    return KnownRoute(route, needed, queues(route.openapi_extra))


def check_path(scope: Scope) -> None:
    """Refuses control characters, which no route has and which patterns and logs read each in their own way."""
    path: str = scope["path"]
    if not path.isprintable() and any(char < " " or char == "\x7f" for char in path):
        raise InvalidRequestError("the path holds a control character")
