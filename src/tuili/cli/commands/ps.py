"""`tuili ps`: the models a running server has loaded."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from tuili.cli.remote.running_server import KeyOption, UrlOption, the_server


def command(
    url: UrlOption = None,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that a running server has loaded, with their memory and how long they stay when idle."""
    from tuili.cli.remote.server_view import render_models

    models = the_server(url, api_key, os.environ).get("/api/ps")["models"]
    typer.echo(json.dumps(models, indent=2) if as_json else render_models(models).removesuffix("\n"))
