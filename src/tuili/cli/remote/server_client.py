"""A running server as the commands speak to it: JSON, streams of JSON, errors of our own tree.

Knows HTTP, not what is asked. http.client, because it is imported in a fifth of httpx's time, which a person waits for.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from tuili.cli.remote.server_address import ServerAddress
from tuili.engine.wire import ErrorNote, error_of
from tuili.errors import AuthenticationError, EngineUnavailableError, TuiliError

NAME = "tuili"  # what a server of ours calls itself
_SILENCE_S = 300.0  # without a byte; servers send signs of life every few seconds
_MAX_BODY_BYTES = 64 << 20
_MAX_LINE_BYTES = 16 << 20


class ServerClient:
    """One server. Each request has a connection of its own, which ends with it."""

    def __init__(self, address: ServerAddress, api_key: str | None = None) -> None:
        self.address = address
        self._api_key = api_key

    def greet(self, timeout_s: float) -> bool:
        """Whether a server of ours answers; nothing secret is sent before that is known.

        Raises AuthenticationError when it is one and wants a key that is not there.
        """
        try:
            with self._connection(timeout_s) as connection:
                response = _sent(connection, "GET", f"{self.address.path}/version", None, {})
                body = response.read(4096)
        except (OSError, http.client.HTTPException):
            return False
        if response.status == 401 and f'realm="{NAME}"' in (response.headers.get("www-authenticate") or ""):
            if self._api_key is None:
                raise AuthenticationError(f"the server at {self.address} wants an API key: put it into TUILI_API_KEY")
            return True
        return response.status == 200 and _object(body).get("server") == NAME

    def model_names(self) -> list[str]:
        """Every name that may be asked for, models named at start first. Raises as `get`."""
        return [str(entry["id"]) for entry in self.get("/v1/models")["data"]]

    def get(self, path: str) -> Any:
        """The body's JSON. Raises the error that the server tells, or EngineUnavailableError."""
        return self._asked("GET", path, None, _SILENCE_S)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float | None = _SILENCE_S) -> Any:
        """As `get`; timeout_s None waits as long as it takes."""
        return self._asked("POST", path, body, timeout_s)

    def text(self, path: str) -> str:
        """A body that is no JSON. Raises as `get`."""
        with self._answer("GET", path, None, _SILENCE_S) as response:
            return response.read(_MAX_BODY_BYTES).decode(errors="replace")

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of server-sent events as they come. Closing it ends the request. Raises as `get`."""
        with self._answer("POST", path, body, _SILENCE_S) as response:
            while line := response.readline(_MAX_LINE_BYTES):
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:"):
                    continue
                if data == b"[DONE]":
                    return
                event = _object(data)
                if "error" in event:
                    raise _told(event, 500)
                yield event
        raise EngineUnavailableError(f"the server at {self.address} ended its answer in the middle")

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None) -> Any:
        with self._answer(method, path, body, timeout_s) as response:
            data = response.read(_MAX_BODY_BYTES)
            try:
                return json.loads(data)
            except ValueError as error:
                raise EngineUnavailableError(f"{self.address}{path} answered what is no JSON") from error

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"content-type": "application/json"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        data = None if body is None else json.dumps(body).encode()
        with self._connection(timeout_s) as connection:
            try:
                with _sent(connection, method, f"{self.address.path}{path}", data, headers) as response:
                    if not 200 <= response.status < 300:
                        raise _told(_object(response.read(_MAX_BODY_BYTES)), response.status)
                    yield response
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
                raise EngineUnavailableError(f"the server at {self.address} failed: {said}") from error

    @contextmanager
    def _connection(self, timeout_s: float | None) -> Iterator[http.client.HTTPConnection]:
        host, port = self.address.host, self.address.port
        connection: http.client.HTTPConnection
        if self.address.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        with closing(connection):
            yield connection


def _sent(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    connection.request(method, path, body, dict(headers))
    return connection.getresponse()


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; anything else is an empty one."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _told(body: Mapping[str, Any], status: int) -> TuiliError:
    """The error of a body in the words of any of the dialects."""
    error = body.get("error")
    if isinstance(error, Mapping):
        message = str(error.get("message") or f"the server answered {status}")
        return error_of(ErrorNote(str(error.get("code")), message, error.get("param")))
    return EngineUnavailableError(str(error) if error else f"the server answered {status}")
