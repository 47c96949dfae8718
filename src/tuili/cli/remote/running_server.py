"""Which running server a command uses: the one that is named, or ours on this machine; never another program's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tuili.cli.remote.server_address import is_listened_on, likely_addresses, named_address
from tuili.cli.terminal import note
from tuili.errors import AuthenticationError, EngineUnavailableError

if TYPE_CHECKING:
    from tuili.cli.remote.server_client import ServerClient

UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The server; else TUILI_HOST's, else one that runs here.")
]
KeyOption = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="Its key for managing models; else TUILI_API_KEY.")
]
API_KEY_VARIABLE = "TUILI_API_KEY"
_NAMED_TIMEOUT_S = 10.0
_LIKELY_TIMEOUT_S = 1.0


def named_server(url: str | None, api_key: str | None, environ: Mapping[str, str]) -> ServerClient | None:
    """The server of --url or TUILI_HOST, if either is said.

    Raises InvalidRequestError for what is no address, EngineUnavailableError when no server of ours answers there, and
    AuthenticationError.
    """
    address = named_address(url, environ)
    if address is None:
        return None
    from tuili.cli.remote.server_client import ServerClient  # slow to import

    client = ServerClient(address, api_key or environ.get(API_KEY_VARIABLE))
    if not client.greet(_NAMED_TIMEOUT_S):
        said = "--url" if url is not None else "TUILI_HOST"
        raise EngineUnavailableError(f"no tuili server answers at {address}, which {said} names")
    return client


def likely_servers(api_key: str | None, environ: Mapping[str, str]) -> Iterator[ServerClient]:
    """Servers of ours that run where they do by default. Takes no time where nobody listens."""
    for address in dict.fromkeys(likely_addresses(environ)):
        if not is_listened_on(address):
            continue
        from tuili.cli.remote.server_client import ServerClient  # slow to import

        client = ServerClient(address, api_key or environ.get(API_KEY_VARIABLE))
        try:
            if client.greet(_LIKELY_TIMEOUT_S):
                yield client
        except AuthenticationError as error:
            note(f"{error}; it is left alone")


def the_server(url: str | None, api_key: str | None, environ: Mapping[str, str]) -> ServerClient:
    """The server that is named, else the first that runs. Raises EngineUnavailableError when there is none."""
    found = named_server(url, api_key, environ) or next(likely_servers(api_key, environ), None)
    if found is None:
        places = " or ".join(f"{address.host}:{address.port}" for address in likely_addresses(environ))
        raise EngineUnavailableError(
            f"no tuili server runs at {places}: start one with `tuili serve`, or say where it is with --url"
        )
    return found
