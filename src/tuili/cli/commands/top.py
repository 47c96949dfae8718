"""`tuili top`: what a running server is doing, as it goes."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tuili.cli.remote.running_server import KeyOption, UrlOption, the_server
from tuili.cli.terminal import one_line
from tuili.errors import EngineUnavailableError

if TYPE_CHECKING:
    from tuili.cli.remote.server_client import ServerClient


def command(
    url: UrlOption = None,
    api_key: KeyOption = None,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once; that is all without a terminal, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a look.")] = False,
) -> None:
    """Show a running server's requests (waiting, prefill, decode), tokens per second, models and memory.

    q ends it.
    """
    client = the_server(url, api_key, os.environ)
    if as_json:
        _print_views(client, None if once else interval)
    elif once or sys.platform == "win32":
        _print_view(client)
    else:
        _show_views(client, interval)


def _print_views(client: ServerClient, interval_s: float | None) -> None:
    from tuili.cli.remote.server_view import view

    typer.echo(json.dumps(asdict(view(client))))
    while interval_s is not None:
        time.sleep(interval_s)
        typer.echo(json.dumps(asdict(view(client))))


def _print_view(client: ServerClient) -> None:
    from tuili.cli.remote.server_view import render_view, view

    typer.echo(render_view(view(client)), nl=False)


def _show_views(client: ServerClient, interval_s: float) -> None:
    from tuili.cli.live_screen import can_show_live, show_live
    from tuili.cli.remote.server_view import render_view, view

    def draw() -> str:
        try:
            return render_view(view(client))
        except EngineUnavailableError as error:  # it may come back
            return f"{one_line(str(error))}\n"

    if not can_show_live():
        return _print_view(client)
    return show_live(draw, interval_s)
