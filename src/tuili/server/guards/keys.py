"""Who is calling, and whether they may: API keys and the scope that each route declares. Deny by default.

Which routes there are is known; what they do is not.
"""

from __future__ import annotations

from starlette.types import Scope

from tuili.errors import AuthenticationError, ForbiddenError
from tuili.server.api_keys import MAX_KEY_CHARS, ApiKey, find_key
from tuili.server.caller import ALL_SCOPES, Caller
from tuili.server.guards.route_scopes import RouteScopes, check_path
from tuili.server.http_settings import HttpSettings


class KeyGuard:
    """Sets the caller's key and scopes. Without keys everybody may everything."""

    def __init__(self, settings: HttpSettings, routes: RouteScopes) -> None:
        self._keys: tuple[ApiKey, ...] = settings.api_keys
        self._routes = routes

    def check(self, scope: Scope) -> None:
        """Raises AuthenticationError, ForbiddenError or InvalidRequestError."""
        check_path(scope)
        self._admit(scope, scope["state"]["caller"])

    def _admit(self, scope: Scope, caller: Caller) -> None:
        if not self._keys:
            caller.scopes = ALL_SCOPES
            return
        needed = self._routes.scope_of(scope)
        given = _given_key(scope)
        key = None if given is None or len(given) > MAX_KEY_CHARS else find_key(self._keys, given)
        if key is not None:
            caller.key_id, caller.scopes, caller.cache_salt = key.key_id, key.scopes, key.cache_salt
        if needed == "public":
            return
        if key is None:
            raise AuthenticationError(
                "this server needs an API key: send it as Authorization: Bearer KEY, or as x-api-key"
                if given is None
                else "the API key is not known here"
            )
        if needed is not None and needed not in key.scopes:  # None: no such route, as the router will say
            raise ForbiddenError(f"this API key may not be used here: the route needs the scope {needed}")


def _given_key(scope: Scope) -> bytes | None:
    value: bytes
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.strip().partition(b" ")
            if kind.lower() == b"bearer":  # any other kind is meant for a proxy on the way
                return key.strip()
        if name == b"x-api-key":
            return value.strip()
    return None
