"""`tuili cp`: a second name for a stored model."""

from __future__ import annotations

from typing import Annotated

import typer

from tuili.cli.model_argument import complete_stored_model
from tuili.config import store_dir
from tuili.store.store import Store


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_stored_model)],
    new_name: Annotated[str, typer.Argument(metavar="NEW")],
) -> None:
    """Give a stored model a second name. The files are shared, and stay until both names are removed."""
    Store(store_dir()).copy(name, new_name)
