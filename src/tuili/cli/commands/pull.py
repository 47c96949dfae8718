"""`tuili pull`: fetch a model into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from tuili.cli.model_argument import complete_model
from tuili.cli.pull_display import pull_visibly
from tuili.config import store_dir
from tuili.store.store import Store


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="smollm2:135m, gemma3:270m, or a Hugging Face org/name[:quantization].",
            autocompletion=complete_model,
        ),
    ],
) -> None:
    """Fetch a model; an interrupted download continues where it stopped."""
    pull_visibly(Store(store_dir()), name)
