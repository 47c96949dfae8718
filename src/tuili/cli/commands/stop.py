"""`tuili stop`: have a running server unload models."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tuili.cli.model_argument import complete_stored_model
from tuili.cli.remote.running_server import KeyOption, UrlOption, the_server


def command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=complete_stored_model)],
    url: UrlOption = None,
    api_key: KeyOption = None,
) -> None:
    """Unload models of a running server, each once the requests that use it have ended."""
    client = the_server(url, api_key, os.environ)
    for name in names:
        client.post("/v1/models/unload", {"model": name}, timeout_s=None)
