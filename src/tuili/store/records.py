"""Manifests and blobs on disk: read, publish, forget, check. Knows their layout; no source and no catalogue.

<root>/blobs/sha256-<hex>       files, named by their contents
<root>/manifests/<name>.json    one per model, written last: visible means complete
<root>/locks/publish.lock       held while manifests and blobs change together
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tuili.errors import ConflictError, InvalidRequestError, ModelFileError, ModelNotFoundError
from tuili.store.durable import UNFINISHED, make_folder, publish, sha256_of, sync_folder, write_atomic
from tuili.store.manifest import FileRecord, Manifest, read_manifest
from tuili.store.modelfile import Modelfile
from tuili.store.names import ModelName, name_path, parse_model_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A model on this machine: `path` is a .gguf file or a Hugging Face directory.

    source is "local" for a path used in place; created is seconds since the epoch; digest tells a stored model from
    every other, as far as its source said what the files hold. Of a Modelfile, path, sizes and license are its base's.
    """

    name: str
    path: Path
    source: str
    num_bytes: int
    created: int
    license: str | None = None
    quantization: str | None = None
    digest: str | None = None
    copied_from: str | None = None
    modelfile: Modelfile | None = None


_Stamp = tuple[int, int, int]


def _stamps(folder: Path) -> Iterator[tuple[str, _Stamp]]:
    """The manifests two levels below, and by what it shows that one is another now."""
    for level in _entries(folder):
        for second in _entries(level.path):
            for entry in _entries(second.path):
                if entry.name.endswith(".json"):
                    with suppress(OSError):
                        found = entry.stat()
                        yield entry.path, (found.st_ino, found.st_mtime_ns, found.st_size)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Of a folder; of what is none, or is gone, nothing."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


class Records:
    """The stored models below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[str, tuple[_Stamp, ModelFiles | None]] = {}  # by manifest; None: it cannot be read

    def has(self, model: ModelName) -> bool:
        """Whether a manifest of that name exists, sound or not."""
        return os.path.lexists(self._manifest_path(model))

    def load(self, model: ModelName) -> ModelFiles:
        """A stored model whose files are there in full size. Raises ModelFileError saying what to do."""
        try:
            manifest = self._read(self._manifest_path(model))
        except ModelFileError as error:
            raise ModelFileError(f"model {str(model)!r}: {error}; remove it and pull it again") from error
        for problem in self._file_problems(manifest, contents=False):
            raise ModelFileError(f"{problem}: pull it again")
        return self._model_files(manifest)

    def intact(self, model: ModelName) -> Manifest | None:
        """The manifest when it is sound and its files are there in full size."""
        path = self._manifest_path(model)
        if not path.exists() or any(self._problems(path, contents=False)):
            return None
        return self._read(path)

    def all(self) -> tuple[ModelFiles, ...]:
        """Every model whose manifest can be read, by name. Reads those that have changed since it was asked last."""
        found = {}
        for path, stamp in _stamps(self._root / "manifests"):
            listed = self._listed.get(path)
            found[path] = listed if listed is not None and listed[0] == stamp else (stamp, self._sound(Path(path)))
        self._listed = found
        return tuple(sorted((files for _, files in found.values() if files is not None), key=lambda files: files.name))

    def sole(self) -> ModelFiles | None:
        """The one model that is stored, where there is but one."""
        if len(list(islice(_stamps(self._root / "manifests"), 2))) != 1:
            return None
        return next(iter(self.all()), None)

    def _sound(self, path: Path) -> ModelFiles | None:
        try:
            return self._model_files(self._read(path))
        except (FileNotFoundError, ModelFileError):
            return None

    def publish(self, model: ModelName, manifest: Manifest, part: Path | None) -> None:
        """Moves `part` to its blob, then makes the model visible: in this order, each step durable."""
        with self._publishing():
            if part is not None:
                publish(part, self._file_path(manifest, manifest.files[0]))
            write_atomic(self._manifest_path(model), manifest.to_bytes())
            self._drop_leftovers()

    def copy(self, model: ModelName, name: ModelName, created: int) -> None:
        """Gives a stored model's files a second name, which may be taken only by the same files.

        Raises ModelNotFoundError, ModelFileError as `load` does, ConflictError.
        """
        with self._publishing():
            if not self.has(model):
                raise ModelNotFoundError(f"model {str(model)!r} is not stored")
            self.load(model)
            manifest = self._read(self._manifest_path(model))
            if self.has(name):
                taken = self.intact(name)
                if taken is None or (taken.folder, taken.files) != (manifest.folder, manifest.files):
                    raise ConflictError(f"model {str(name)!r} is stored already: remove it first")
                return
            copied_from = manifest.copied_from or manifest.name
            copied = replace(manifest, name=str(name), created=created, copied_from=copied_from)
            write_atomic(self._manifest_path(name), copied.to_bytes())

    def forget(self, model: ModelName) -> None:
        """Removes a manifest and the blobs only it named. Nothing happens when there is none."""
        path = self._manifest_path(model)
        if self.has(model):
            with self._publishing():
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
                self._drop_leftovers()

    def problems(self, *, contents: bool) -> tuple[str, ...]:
        """What is wrong, one line each; `contents` False compares sizes only, True also every sha256."""
        return tuple(problem for path in self._manifest_paths() for problem in self._problems(path, contents))

    def _problems(self, path: Path, contents: bool) -> Iterator[str]:
        try:
            manifest = self._read(path)
        except FileNotFoundError:  # removed by another process since it was listed
            return
        except ModelFileError as error:
            yield f"{path.relative_to(self._root)}: {error}"
        else:
            yield from self._file_problems(manifest, contents)

    def _file_problems(self, manifest: Manifest, contents: bool) -> Iterator[str]:
        for record in manifest.files:
            file, label = self._file_path(manifest, record), f"model {manifest.name!r}: file {record.name!r}"
            if not file.is_file():
                yield f"{label} is missing"
            elif (found := file.stat().st_size) != record.num_bytes:
                yield f"{label} has {found} bytes, {record.num_bytes} expected"
            elif contents and record.sha256 is not None and sha256_of(file) != record.sha256:
                yield f"{label} changed on disk: its sha256 differs"

    def _read(self, path: Path) -> Manifest:
        """Raises FileNotFoundError, or ModelFileError also for a manifest that is filed under another model's name."""
        manifest = read_manifest(path)
        try:
            is_its_own = self._manifest_path(parse_model_name(manifest.name)) == path
        except InvalidRequestError:
            is_its_own = False
        if not is_its_own:
            raise ModelFileError(f"manifest is that of {manifest.name!a:.200}")
        return manifest

    def _manifest_path(self, model: ModelName) -> Path:
        path = name_path(model)
        return self._root / "manifests" / path.with_name(f"{path.name}.json")

    def _manifest_paths(self) -> list[Path]:
        return sorted((self._root / "manifests").glob("*/*/*.json"))

    def _file_path(self, manifest: Manifest, record: FileRecord) -> Path:
        if manifest.folder is not None:
            return Path(manifest.folder) / record.name
        return self._root / "blobs" / f"sha256-{record.sha256}"

    def _model_files(self, manifest: Manifest) -> ModelFiles:
        is_file = len(manifest.files) == 1 or all(file.name.lower().endswith(".gguf") for file in manifest.files)
        return ModelFiles(
            name=manifest.name,
            path=self._file_path(manifest, manifest.files[0]) if is_file else Path(str(manifest.folder)),
            source=manifest.source,
            num_bytes=manifest.num_bytes,
            created=manifest.created,
            license=manifest.license,
            quantization=manifest.quantization,
            digest=manifest.digest,
            copied_from=manifest.copied_from,
        )

    def _sound_manifests(self) -> tuple[list[Manifest], bool]:
        """The manifests that can be read, and whether these are all."""
        sound, is_complete = [], True
        for path in self._manifest_paths():
            try:
                sound.append(self._read(path))
            except FileNotFoundError:  # removed by another process since it was listed
                continue
            except ModelFileError:
                is_complete = False
        return sound, is_complete

    def _drop_leftovers(self) -> None:
        """Removes manifests whose writing was cut off, and blobs no manifest names.

        Blobs stay while a manifest is unreadable, as it might name them. Call while publishing: then nobody writes.
        """
        for path in (self._root / "manifests").glob(f"*/*/{UNFINISHED}*"):
            path.unlink()
        manifests, is_complete = self._sound_manifests()
        used = {f"sha256-{file.sha256}" for manifest in manifests for file in manifest.files}
        for blob in (self._root / "blobs").glob("sha256-*") if is_complete else ():
            if blob.name not in used:
                blob.unlink()

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        from filelock import FileLock  # slow to import, and only writing needs it

        make_folder(self._root / "locks")
        with FileLock(self._root / "locks" / "publish.lock"):
            yield
