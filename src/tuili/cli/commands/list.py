"""`tuili list`: what is stored."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from tuili.cli.terminal import format_age, format_bytes, format_table, note, one_line
from tuili.config import store_dir
from tuili.store.store import Store


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List stored models."""
    store = Store(store_dir())
    models = store.list()
    for problem in store.check(contents=False):
        note(f"{problem}: pull it again, or remove it")
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {
                        "name": model.name,
                        "size": model.num_bytes,
                        "quantization": model.quantization,
                        "source": model.source,
                        "license": model.license,
                        "modified": datetime.fromtimestamp(model.created, UTC).isoformat(),
                    }
                    for model in models
                ],
                indent=2,
            )
        )
        return
    rows = [
        (
            model.name,
            format_bytes(model.num_bytes),
            one_line(model.quantization or "-"),
            one_line(model.source),
            format_age(time.time() - model.created),
        )
        for model in models
    ]
    typer.echo(format_table(("NAME", "SIZE", "QUANTIZATION", "SOURCE", "MODIFIED"), rows), nl=False)
