"""`tuili rm`: remove stored models."""

from __future__ import annotations

from typing import Annotated

import typer

from tuili.cli.model_argument import complete_stored_model
from tuili.cli.terminal import note
from tuili.config import store_dir
from tuili.store.store import Store


def command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=complete_stored_model)],
) -> None:
    """Remove models and what interrupted pulls left. Files in a Hugging Face cache stay there."""
    store = Store(store_dir())
    sources = {files.name: files.source for files in store.list()}
    for name in names:
        store.remove(name)
        if sources.get(name) == "huggingface":
            note(f"{name} is forgotten; its files stay in the Hugging Face cache (`hf cache rm` frees them)")
