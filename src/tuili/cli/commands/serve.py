"""`tuili serve`: an HTTP server for OpenAI's, Ollama's and Anthropic's clients, on one port, with many models."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from tuili.cli.serve_options import ServeCommand, given_flags, taking_settings
from tuili.cli.terminal import note

COMMAND_CLASS = ServeCommand


@taking_settings
def command(
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Settings in TOML or JSON, by the names of the flags; flags count more."),
    ] = None,
    **flags: Any,
) -> int:
    """Serve models to clients of OpenAI, Ollama and Anthropic.

    Models named here are loaded at once, any other that is stored when it is asked for. Every setting may also be in
    a file (--config) or a variable TUILI_SERVE_<NAME>; flags count before variables, variables before the file.

    Ctrl-C or SIGTERM lets running answers finish, a second one does not wait. Exit code 0: told to stop, 1: failed,
    2: wrong settings, 70: the engines of all models named here are given up.
    """
    from tuili.server.settings.settings_sources import resolve

    resolved = resolve(given_flags(flags), os.environ, config)
    for line in resolved.notes:
        note(f"without effect: {line}")
    from tuili.server.run import serve  # slow to import: what is wrong is told first

    return serve(resolved.settings)
