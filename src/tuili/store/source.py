"""What a model source is: it knows whether it offers a name, and how to get the files.

Sources live one per file in `sources/`, each with a module attribute SOURCE, and are blind to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tuili.store.manifest import FileRecord, Manifest
from tuili.store.names import ModelName
from tuili.store.offered import OfferedFile, Traffic
from tuili.store.progress import ProgressCallback


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """Verified files: either one `part` to move into the store, or several in a `folder` to use in place."""

    files: tuple[FileRecord, ...]
    part: Path | None = None
    folder: Path | None = None
    revision: str | None = None
    license: str | None = None
    quantization: str | None = None


class Source(Protocol):
    """Where models come from."""

    @property
    def name(self) -> str:
        """The word shown by `tuili list` and written into manifests."""

    def offers(self, name: ModelName) -> bool:
        """Whether a name is this source's to fetch; asks nobody over the network."""

    def fetch(
        self, name: ModelName, previous: Manifest | None, workspace: Path, progress: ProgressCallback
    ) -> Fetched | None:
        """Gets and verifies a model, resuming from what `workspace` holds. None: `previous` is current.

        Raises DownloadError, ModelNotFoundError or ModelFileError, each one line.
        """

    def offered_files(self, name: ModelName, traffic: Traffic) -> AbstractContextManager[Sequence[OfferedFile]]:
        """The files `fetch` would get, to be looked into where they are. Raises as `fetch` does."""
