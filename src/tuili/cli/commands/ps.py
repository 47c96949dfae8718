"""`tuili ps`: the models a running server has loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tuili.cli.server_client import KeyOption, ServerClient, UrlOption


def command(
    url: UrlOption = None,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that a running server has loaded, with their memory and how long they stay when idle."""
    from tuili.cli.server_view import render_models

    with ServerClient(url, api_key) as client:
        models = client.json("/api/ps")["models"]
    typer.echo(json.dumps(models, indent=2) if as_json else render_models(models).removesuffix("\n"))
