"""All guards as one layer: each would be another frame to go through whenever anything is read, sent or waited for.

Knows their order; the checks are theirs.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from tuili.server.guards.body_limits import BodyGuard
from tuili.server.guards.hosts import HostGuard, answer_preflight, is_preflight
from tuili.server.guards.keys import KeyGuard
from tuili.server.guards.route_scopes import RouteScopes
from tuili.server.http_settings import HttpSettings


class Guards:
    """What is wrong with a request before anything of its body is read."""

    def __init__(self, settings: HttpSettings, routes: RouteScopes) -> None:
        self._hosts = HostGuard(settings)
        self._keys = KeyGuard(settings, routes)
        self.bodies = BodyGuard(settings)

    def check(self, scope: Scope) -> None:
        """Raises the first fault, as their checks do."""
        self._hosts.check(scope)
        if not is_preflight(scope):  # asked for by browsers, which send no key with it
            self._keys.check(scope)
            self.bodies.check(scope)


class GuardLayer:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, guards: Guards) -> None:
        self._app = app
        self._guards = guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._guards.check(scope)
            if is_preflight(scope):
                await answer_preflight(scope, send)
                return
            receive = self._guards.bodies.limited(receive)
        await self._app(scope, receive, send)
