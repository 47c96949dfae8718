"""Model names as Ollama's clients write them, and as they expect to read them."""

from __future__ import annotations

from collections.abc import Collection

LATEST = ":latest"
_PREFIXES = ("registry.ollama.ai/library/", "library/")


def model_name(written: str, served: Collection[str] = ()) -> str:
    """The name a model has here: tag "latest" is none, and its registry is left out. `served` names are taken as is."""
    if written in served:
        return written
    for prefix in _PREFIXES:
        if written.startswith(prefix):
            written = written.removeprefix(prefix)
            break
    return written.removesuffix(LATEST)


def shown_name(name: str) -> str:
    """With a tag, which clients count on."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{LATEST}"
