"""Finds plug-ins by looking into a package's directory: one file each, no list to edit."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

Entry = TypeVar("Entry")


def discover(package: ModuleType, wanted: str | None = None) -> dict[str, ModuleType]:
    """Imports every public module of `package`, or only `wanted` if there is one of that name, sorted by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    if wanted in names:
        names = [wanted]
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


def index(entries: list[tuple[str, Entry]], kind: str) -> dict[str, Entry]:
    """Maps ids to entries. A duplicate id is a bug of ours and raises at once."""
    table: dict[str, Entry] = {}
    for key, entry in entries:
        assert key not in table, f"two {kind}s call themselves {key!r}"
        table[key] = entry
    return table
