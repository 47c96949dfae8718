"""The models kept on this machine: resolve a name, pull, list, copy, remove, check.

<root>/partial/<name>/      downloads under way or interrupted
<root>/locks/<name>.lock    one per model, so that many pulls download once

Finished models are `records.py`'s; fetching is the sources' business. Local paths are used in place.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from tuili.checks import shown
from tuili.errors import ConflictError, InvalidRequestError, ModelFileError, ModelNotFoundError
from tuili.registry import discover
from tuili.store.catalogue import CATALOGUE, CatalogueEntry, find_entry
from tuili.store.durable import make_folder, storage_errors
from tuili.store.manifest import Manifest
from tuili.store.modelfile import Modelfile, is_modelfile, read_modelfile
from tuili.store.names import ModelName, is_path_like, name_path, parse_model_name
from tuili.store.offered import OfferedFile, Traffic
from tuili.store.progress import ProgressCallback, PullProgress, ignore_progress
from tuili.store.records import ModelFiles, Records
from tuili.store.source import Fetched, Source

if TYPE_CHECKING:  # slow to import, and only writing needs it
    from filelock import FileLock

_BASES = "a model's name, a .gguf file or a model's folder"


def discovered_sources() -> dict[str, Source]:
    """The sources of `tuili.store.sources`, by module name."""
    from tuili.store import sources

    return {name: module.SOURCE for name, module in discover(sources).items()}


def existing_path(text: str) -> Path | None:
    """The file or folder a text names, if there is one."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, no such home
        return None


class Store:
    """The store below `root`, which is created when first written to.

    sources None discovers them. A catalogue name may be given without its tag.
    """

    def __init__(
        self,
        root: Path,
        sources: Mapping[str, Source] | None = None,
        catalogue: tuple[CatalogueEntry, ...] = CATALOGUE,
    ) -> None:
        self._root = root
        self._sources = sources
        self._catalogue = catalogue
        self._records = Records(root)

    def has(self, name: str) -> bool:
        """Whether a model of that name is stored."""
        try:
            return self._records.has(self._canonical(name))
        except InvalidRequestError:
            return False

    def knows(self, name: str) -> bool:
        """Whether the catalogue lists that name."""
        try:
            return find_entry(parse_model_name(name), self._catalogue) is not None
        except InvalidRequestError:
            return False

    def full_name(self, name: str) -> str:
        """The name as the store keeps it: a catalogue name has its tag. Raises InvalidRequestError for what is none."""
        return str(self._canonical(name))

    def recommended_sampling(self, name: str) -> dict[str, float]:
        """What the catalogue recommends for a model of that name or a copy of it; empty for others and for paths."""
        try:
            name = self.base_name(name)
            model = self._canonical(name)
            known = self._records.load(model).copied_from if self._records.has(model) else None
            entry = find_entry(parse_model_name(known or name), self._catalogue)
        except (InvalidRequestError, ModelFileError):
            return {}
        return {} if entry is None else dict(entry.sampling)

    def resolve(self, name: str) -> ModelFiles:
        """The files a name or path means: stored models first, then catalogue names, then existing paths.

        Raises ModelNotFoundError with a suggestion, InvalidRequestError for what is no name at all,
        ModelFileError when stored files are gone or changed, and for a path that is neither file nor folder.
        A Modelfile is its base with settings, raises InvalidRequestError for what is wrong in it, and
        ModelNotFoundError while its base is not stored.
        """
        if self.has(name):
            return self._records.load(self._canonical(name))
        if (modelfile := self.modelfile(name)) is not None:
            return self._with_settings(name, modelfile)
        if not self.knows(name) and (path := existing_path(name)) is not None:
            return _local_files(name, path)
        if is_path_like(name):
            raise ModelNotFoundError(f"no file or folder {name!a}")
        raise ModelNotFoundError(self._not_stored_message(self._canonical(name)))

    def modelfile(self, name: str) -> Modelfile | None:
        """What the Modelfile of that path says; None for a name, and for the path of anything else.

        Raises InvalidRequestError naming what is wrong in it, ModelFileError when it cannot be read.
        """
        if self.has(name) or self.knows(name):
            return None
        path = existing_path(name)
        try:
            return read_modelfile(path) if path is not None and path.is_file() and is_modelfile(path) else None
        except OSError as error:
            raise ModelFileError(f"{Path(name).name}: cannot be read: {error.strerror}") from None

    def base_name(self, name: str) -> str:
        """The name or path whose weights `name` means: what a Modelfile is made from, else the same."""
        modelfile = self.modelfile(name)
        return name if modelfile is None else self._base(name, modelfile)

    def _base(self, name: str, modelfile: Modelfile) -> str:
        """A stored or known name, a path that exists, else a name that may be fetched.

        Paths are relative to the Modelfile. Raises InvalidRequestError for anything else.
        """
        base, place = modelfile.base, modelfile.base_place
        if self.has(base) or self.knows(base):
            return base
        path = existing_path(str(Path(name).expanduser().parent / base)) if not base.startswith("~") else None
        path = path or existing_path(base if base.startswith("~") else "")
        try:
            if path is None and not is_path_like(base):
                return str(parse_model_name(base))
            if path is not None and not _can_be_modelfile(path):
                return str(path)
        except InvalidRequestError as error:
            raise place.refusal(f"FROM {shown(base)}", f"{_BASES}; {error}") from None
        what = "which is no file or folder" if path is None else "which is a Modelfile itself"
        raise place.refusal(f"FROM {shown(base)}, {what}", _BASES)

    def _with_settings(self, name: str, modelfile: Modelfile) -> ModelFiles:
        base = self.resolve(self._base(name, modelfile))
        digest = None if base.digest is None else sha256(f"{base.digest} {modelfile.digest}".encode()).hexdigest()
        return replace(base, name=name, digest=digest, modelfile=modelfile)

    def path(self, name: str) -> Path:
        """The weights file or model directory of `resolve(name)`."""
        return self.resolve(name).path

    def pull(self, name: str, progress: ProgressCallback = ignore_progress) -> ModelFiles:
        """Fetches a model, or makes sure the stored one is current. Concurrent pulls of a name download once.

        Raises InvalidRequestError, ModelNotFoundError, DownloadError, InsufficientStorageError.
        """
        model = self._canonical(name)
        source = self._source_of(model)
        workspace = self._workspace(model)
        with storage_errors(), self._locked(model, progress):
            make_folder(workspace)
            _drop_special_files(workspace)
            fetched = source.fetch(model, self._records.intact(model), workspace, progress)
            if fetched is not None:
                self._records.publish(model, _manifest(model, source, fetched), fetched.part)
            _remove_folder(workspace)
            return self._records.load(model)

    @contextmanager
    def offered_files(self, name: str, traffic: Traffic) -> Iterator[Sequence[OfferedFile]]:
        """What `pull` would fetch, to be looked into where it is. Raises as `pull` does."""
        model = self._canonical(name)
        with self._source_of(model).offered_files(model, traffic) as files:
            yield files

    def list(self) -> tuple[ModelFiles, ...]:
        """Stored models by name. Damaged records are left out here and named by `check`."""
        return self._records.all()

    def sole(self) -> ModelFiles | None:
        """The stored model, where there is but one. Reads no other."""
        return self._records.sole()

    def remove(self, name: str) -> None:
        """Forgets a model and what an interrupted pull left; blobs other models use, and files in place, stay.

        Raises ModelNotFoundError, or ConflictError while the model is being pulled.
        """
        from filelock import Timeout

        model = self._canonical(name)
        workspace = self._workspace(model)
        if not self._records.has(model) and not workspace.exists():
            raise ModelNotFoundError(f"model {str(model)!r} is not stored")
        with storage_errors():
            try:
                with self._lock(model).acquire(blocking=False):
                    _remove_folder(workspace)
                    self._records.forget(model)
            except Timeout:
                raise ConflictError(f"model {str(model)!r} is being pulled: wait for that, or stop it") from None

    def copy(self, name: str, new_name: str) -> ModelFiles:
        """Gives a stored model a second name. Both are equal: files stay until neither is left.

        Raises ModelNotFoundError, ModelFileError for damaged files, InvalidRequestError for a name that means another
        model already, ConflictError when the new name is taken or being pulled.
        """
        from filelock import Timeout

        model, copy = self._canonical(name), parse_model_name(new_name)
        if self.knows(new_name):
            raise InvalidRequestError(f"{new_name!r} is a catalogued model's name: choose another", param="destination")
        with storage_errors():
            try:
                with self._lock(copy).acquire(blocking=False):
                    self._records.copy(model, copy, int(time.time()))
            except Timeout:
                raise ConflictError(f"model {new_name!r} is being pulled: choose another name") from None
        return self._records.load(copy)

    def check(self, *, contents: bool = True) -> tuple[str, ...]:
        """What is wrong with the store, one line each: damaged records, missing or changed files.

        contents False compares sizes only; True also reads every file and compares its sha256.
        """
        return self._records.problems(contents=contents)

    def _canonical(self, name: str) -> ModelName:
        model = parse_model_name(name)
        entry = find_entry(model, self._catalogue)
        return parse_model_name(entry.name) if entry else model

    def _source_of(self, model: ModelName) -> Source:
        sources = discovered_sources() if self._sources is None else self._sources
        for source in sources.values():
            if source.offers(model):
                return source
        raise ModelNotFoundError(f"no source offers {str(model)!r}: {self._suggestion(str(model))}")

    def _not_stored_message(self, model: ModelName) -> str:
        if model.organization is not None or self.knows(str(model)):
            return f"model {str(model)!r} is not stored: fetch it with `tuili pull {model}`"
        return f"model {str(model)!r} is not known: {self._suggestion(str(model))}"

    def close_name(self, name: str, cutoff: float = 0.6) -> str | None:
        """The known name most like this one, with or without its tag, if one is at least so alike (0 to 1)."""
        import difflib

        known = sorted(self._known_names())
        written = {full.split(":")[0]: full for full in known} | dict(zip(known, known, strict=True))
        close = difflib.get_close_matches(name, written, 1, cutoff)
        return written[close[0]] if close else None

    def _known_names(self) -> set[str]:
        return {entry.name for entry in self._catalogue} | {files.name for files in self.list()}

    def _suggestion(self, name: str) -> str:
        close, known = self.close_name(name), sorted(self._known_names())
        return f"did you mean {close!r}?" if close else f"known are {', '.join(known)}, and any org/name"

    def _workspace(self, model: ModelName) -> Path:
        return self._root / "partial" / name_path(model)

    def _lock(self, model: ModelName) -> FileLock:
        from filelock import FileLock

        path = name_path(model)
        file = self._root / "locks" / path.with_name(f"{path.name}.lock")
        make_folder(file.parent)
        return FileLock(file)

    @contextmanager
    def _locked(self, model: ModelName, progress: ProgressCallback) -> Iterator[None]:
        """Holds the model's lock, saying so when another process has it."""
        from filelock import Timeout

        lock = self._lock(model)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            progress(PullProgress(f"waiting for another pull of {model}"))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _manifest(model: ModelName, source: Source, fetched: Fetched) -> Manifest:
    return Manifest(
        name=str(model),
        source=source.name,
        files=fetched.files,
        created=int(time.time()),
        folder=None if fetched.folder is None else str(fetched.folder),
        revision=fetched.revision,
        license=fetched.license,
        quantization=fetched.quantization,
    )


def _remove_folder(path: Path) -> None:
    """With what is in it; of a link the link alone. Nothing happens when there is none."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _drop_special_files(folder: Path) -> None:
    """Removes pipes and sockets, and links to them: opening a pipe would wait for ever."""
    for path in folder.rglob("*"):
        if path.is_fifo() or path.is_socket():
            path.unlink()


def _can_be_modelfile(path: Path) -> bool:
    """Of what cannot be read, opening it as a model will tell."""
    try:
        return path.is_file() and is_modelfile(path)
    except OSError:
        return False


def _local_files(name: str, path: Path) -> ModelFiles:
    """Raises ModelFileError for a device, a pipe, a socket, and for what cannot be read or goes away meanwhile."""
    if not path.is_file() and not path.is_dir():
        raise ModelFileError(f"{path.name}: neither a file nor a folder")
    try:
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        num_bytes, changed_s = sum(file.stat().st_size for file in files), path.stat().st_mtime
    except OSError as error:
        raise ModelFileError(f"{path.name}: cannot be read: {error.strerror}") from None
    return ModelFiles(name=name, path=path, source="local", num_bytes=num_bytes, created=int(changed_s))
