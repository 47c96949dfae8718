"""A running server, asked over HTTP by the commands about it. Knows where it is to be found; not what it answers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from tuili.checks import shown
from tuili.errors import InvalidRequestError, PeerError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
_PORTS = {"TUILI_HOST": 8000, "OLLAMA_HOST": 11434}  # where the variable names none
_ADDRESS = re.compile(r"(?:(https?)://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*)(?::([0-9]{1,5}))?/?")
_EVERYWHERE = ("", "0.0.0.0", "[::]")  # where a server listens, but nobody can be reached
_TIMEOUT_S = 10.0

UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The server; else TUILI_HOST, OLLAMA_HOST or port 8000 here.")
]
KeyOption = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="Its key for managing models; else TUILI_API_KEY.")
]


def server_url(given: str | None, environment: Mapping[str, str]) -> str:
    """The server's address without a slash at its end. Raises InvalidRequestError naming what is no address."""
    name, text, port = "--url", given, 80
    for variable, usual_port in _PORTS.items():
        if text is None and environment.get(variable):
            name, text, port = variable, environment[variable], usual_port
    if text is None:
        return DEFAULT_URL
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3] or 1) > 65535 or (given is not None and match[1] is None):
        raise InvalidRequestError(f"{name} must be an address such as {DEFAULT_URL}, got {shown(text)}", param=name)
    scheme = match[1] or "http"
    usual = 443 if scheme == "https" else 80 if match[1] else port
    host = "127.0.0.1" if match[2] in _EVERYWHERE else match[2]
    return f"{scheme}://{host}:{match[3] or usual}"


class ServerClient:
    """Asks one server, until it is left as a context. Every failure is a PeerError of one line."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        import httpx  # slow to import

        self.url = server_url(url, os.environ)
        key = api_key or os.environ.get("TUILI_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def json(self, path: str) -> Any:
        """What GET answers."""
        return self._asked("GET", path).json()

    def text(self, path: str) -> str:
        """What GET answers, as text."""
        return self._asked("GET", path).text

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Any:
        """What POST answers; it may take as long as timeout_s, None for ever."""
        return self._asked("POST", path, json=dict(body), timeout=timeout_s).json()

    def _asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        import httpx

        try:
            response = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise PeerError(
                f"nothing answers at {self.url}: is `tuili serve` running there? ({type(error).__name__})"
            ) from None
        if response.is_error:
            raise PeerError(f"{self.url}{path}: {_told(response)}")
        return response


def _told(response: httpx.Response) -> str:
    """The message in an error's body, whichever API wrote it."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return f"status {response.status_code}"
