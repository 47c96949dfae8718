"""`tuili fsck`: check every stored file against its record."""

from __future__ import annotations

import typer

from tuili.cli.terminal import report_error
from tuili.config import store_dir
from tuili.store.store import Store


def command() -> None:
    """Check the store: read every file and compare its sha256."""
    store = Store(store_dir())
    problems = store.check()
    for problem in problems:
        report_error(f"{problem}: pull it again, or remove it")
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{len(store.list())} models, no problems")
