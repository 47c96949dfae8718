"""Where servers are looked for: what --url, TUILI_HOST and OLLAMA_HOST mean, and whether anybody listens there.

Starts fast: `tuili run` asks before it loads a model itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tuili.errors import InvalidRequestError

PORT, OLLAMA_PORT = 8000, 11434
# A text: compiling it takes longer than finding nobody, and only an address that somebody wrote needs it.
_FORM = r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?"
_SCHEME_PORTS = {"http": 80, "https": 443}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANY = ("", "0.0.0.0", "::")  # as addresses to listen on: this machine among them


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server's root. `path` is where a proxy shows it, without a slash at its end."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def is_loopback(self) -> bool:
        return self.host in _LOOPBACK or self.host.startswith("127.")


def parse_address(text: str, param: str, default_port: int = PORT) -> ServerAddress:
    """`host`, `host:port` or a URL; one that ends in /v1 means the same. Raises InvalidRequestError naming `param`."""
    match = re.fullmatch(_FORM, text.strip())
    port = None
    if match is not None:
        port = int(match["port"] or _SCHEME_PORTS.get(match["scheme"] or "", default_port))
    if match is None or port is None or not 0 < port < 1 << 16 or not text.strip():
        raise InvalidRequestError(
            f"{param} must be a server's address such as http://127.0.0.1:{PORT}, got {text!a:.200}", param=param
        )
    host = match["host"].strip("[]")
    path = (match["path"] or "").rstrip("/").removesuffix("/v1")
    return ServerAddress(match["scheme"] or "http", "127.0.0.1" if host in _ANY else host, port, path)


def named_address(url: str | None, environ: Mapping[str, str]) -> ServerAddress | None:
    """The server that somebody asks for. Raises InvalidRequestError."""
    if url is not None:
        return parse_address(url, "url")
    if host := environ.get("TUILI_HOST"):
        return parse_address(host, "TUILI_HOST")
    return None


def likely_addresses(environ: Mapping[str, str]) -> list[ServerAddress]:
    """Where a server may run that nobody named. What OLLAMA_HOST names may be another program, and is no error."""
    ours, ollama = (ServerAddress("http", "127.0.0.1", port) for port in (PORT, OLLAMA_PORT))
    try:
        if host := environ.get("OLLAMA_HOST"):
            ollama = parse_address(host, "OLLAMA_HOST", OLLAMA_PORT)
    except InvalidRequestError:
        return [ours]
    return [ours, ollama]


def is_listened_on(address: ServerAddress) -> bool:
    """Whether a connection to the loopback is taken; other addresses, which may keep one waiting, are taken to be."""
    if not address.is_loopback:
        return True
    import _socket  # `socket` around it takes longer to import than a refusal to come

    family, host = (_socket.AF_INET6, "::1") if ":" in address.host else (_socket.AF_INET, address.host)
    connection = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        connection.settimeout(0.2)
        connection.connect(("127.0.0.1" if host == "localhost" else host, address.port))
    except OSError:
        return False
    finally:
        connection.close()
    return True
