"""Refuses requests that a web page elsewhere caused: foreign Host (DNS rebinding) and foreign Origin. Answers CORS.

A page can only name a host that its author controls in public DNS. So an address literal, or a name without a dot or
under a local suffix, cannot be a rebound one; a loopback bind accepts of those only what is the loopback.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import Scope, Send

from tuili.errors import ForbiddenError, InvalidRequestError
from tuili.server.guards.bind import is_loopback
from tuili.server.http_settings import HttpSettings

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
_APP_SCHEMES = ("app", "tauri", "vscode-file", "vscode-webview")  # no web site can have an origin of these
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_EXPOSED = b"x-request-id, request-id, x-ignored-params, retry-after"
_TOKENS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+(?:%[\w.]+)?\]|[a-z0-9_.-]+)(?::(?P<port>\d{1,5}))?")


class HostGuard:
    """Which hosts and origins may be named."""

    def __init__(self, settings: HttpSettings) -> None:
        self._is_loopback = is_loopback(settings.host)
        self._hosts = frozenset(host.lower().rstrip(".") for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)
        self._own = frozenset({"localhost"} if self._is_loopback else own_names())
        self._host = lru_cache(maxsize=16)(self._read_host)  # most requests name the same

    def check(self, scope: Scope) -> None:
        """Raises ForbiddenError or InvalidRequestError. A page that may ask gets to read the answer."""
        host = self._checked_host(scope)
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None:
            return
        if not self._is_origin_allowed(origin.decode("latin-1").lower(), host):
            raise ForbiddenError("the Origin header names a site that may not use this server: see --allowed-origin")
        scope["state"]["caller"].headers += _cors_headers(origin)

    def _checked_host(self, scope: Scope) -> str:
        """The Host header in lower case; "" for the HTTP/1.0 clients that send none, which no browser is."""
        found = [value for name, value in scope["headers"] if name == b"host"]
        if len(found) > 1 or (not found and scope.get("http_version") != "1.0"):
            raise InvalidRequestError("a request must have one Host header", param="host")
        return self._host(found[0]) if found else ""

    def _read_host(self, value: bytes) -> str:
        host = value.decode("latin-1").lower()
        match = _AUTHORITY.fullmatch(host)
        if match is None or not self._is_host_allowed(match["name"].rstrip(".")):
            raise ForbiddenError("the Host header names none of this server's hosts: see --allowed-host")
        return host

    def _is_host_allowed(self, name: str) -> bool:
        if "*" in self._hosts or name in self._hosts or name in self._own or name.strip("[]") in self._hosts:
            return True
        address = _address(name)
        if self._is_loopback:
            return address is not None and address.is_loopback
        return address is not None or "." not in name or name.endswith(_LOCAL_SUFFIXES)

    def _is_origin_allowed(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme in _APP_SCHEMES:
            return True
        if parts.scheme not in ("http", "https") or parts.username is not None or parts.path:
            return False
        if host and parts.netloc == host:
            return True
        address = _address(name)
        return self._is_loopback and (name == "localhost" or (address is not None and address.is_loopback))


def own_names() -> set[str]:
    """What this machine calls itself."""
    names = {"localhost", socket.gethostname().lower()}
    names |= {f"{name}.local" for name in tuple(names) if "." not in name}
    return names


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _cors_headers(origin: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"origin"),
    ]


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what a page may send."""
    if scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


async def answer_preflight(scope: Scope, send: Send) -> None:
    """Which origins may, the check has found out."""
    asked = dict(scope["headers"])
    headers = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"600")]
    wanted = asked.get(b"access-control-request-headers", b"")
    if _TOKENS.fullmatch(wanted) and len(wanted) <= 1024:
        headers.append((b"access-control-allow-headers", wanted))
    if asked.get(b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
