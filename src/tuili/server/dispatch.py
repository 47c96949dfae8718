"""The innermost layer: calls the handler of a path at once, and turns away at the door what could only wait in vain.

A router tries every route in turn and prepares for parameters that no handler here has; both cost more than a refusal
may. Paths with parameters, and all that nobody answers, are left to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tuili.server.guards.route_scopes import RouteScopes


class Dispatch:
    """ASGI middleware. `check_room` raises what a request that queues is refused with before its body is read."""

    def __init__(self, app: ASGIApp, *, routes: RouteScopes, check_room: Callable[[], None]) -> None:
        self._app = app
        self._routes = routes
        self._check_room = check_room
        self._direct = frozenset(id(route) for route in routes.plain_routes() if _takes_request_only(route))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.plain(scope) if scope["type"] == "http" else None
        if found is None or id(found.route) not in self._direct:
            await self._app(scope, receive, send)
            return
        route = found.route
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, {}
        if found.queues:
            scope["state"]["caller"].asks_model = True
            self._check_room()
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def _takes_request_only(route: APIRoute) -> bool:
    is_alone = len(inspect.signature(route.endpoint).parameters) == 1 and route.dependant.request_param_name is not None
    return is_alone and inspect.iscoroutinefunction(route.endpoint)
