"""Fetches real models and vocabularies into a cache folder, once, each verified by sha256."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

import filelock
import platformdirs

from tuili.errors import DownloadError, ModelNotFoundError
from tuili.store.store import Store

LLAMA_CPP_PROJECT, LLAMA_CPP_VERSION = "llama-cpp-python", "0.3.36"
LLAMA_CPP_FILE = "llama_cpp_python-0.3.36.tar.gz"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_CPP_MEMBERS = "llama_cpp_python-0.3.36/vendor/llama.cpp/models/"


class AssetUnavailableError(Exception):
    """Neither cached nor to be had from the package index."""


def cache_dir() -> Path:
    """TUILI_TEST_CACHE, else a folder of the user's cache."""
    folder = Path(os.environ.get("TUILI_TEST_CACHE") or platformdirs.user_cache_dir("tuili-tests", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def store_dir() -> Path:
    """A model store of its own inside the cache, so that tests never touch the user's."""
    return cache_dir() / "store"


def model(name: str) -> Path:
    """The weights file of a catalogued model, fetched by tuili itself. Raises AssetUnavailableError."""
    store = Store(store_dir())
    try:
        return store.path(name)
    except ModelNotFoundError:
        pass
    try:
        return store.pull(name).path
    except DownloadError as error:
        raise AssetUnavailableError(f"model {name} is neither cached nor reachable: {error}") from error


def llama_cpp_models() -> Path:
    """vendor/llama.cpp/models of the llama-cpp-python sources. Raises AssetUnavailableError."""
    folder = cache_dir() / "llama_cpp_models"
    with filelock.FileLock(cache_dir() / "llama_cpp.lock"):
        if not folder.is_dir():
            _unpack(_source_archive(), folder)
    return folder


def _source_archive() -> Path:
    archive = cache_dir() / LLAMA_CPP_FILE
    if not archive.is_file():
        try:
            download_file(LLAMA_CPP_PROJECT, LLAMA_CPP_VERSION, LLAMA_CPP_FILE, LLAMA_CPP_SHA256, archive)
        except DownloadError as error:
            raise AssetUnavailableError(f"{LLAMA_CPP_FILE} is neither cached nor reachable: {error}") from error
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Copies the wanted members; the folder appears only when it is complete."""
    with archive.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == LLAMA_CPP_SHA256
    with tempfile.TemporaryDirectory(dir=archive.parent) as name, tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(LLAMA_CPP_MEMBERS):
                target = Path(name, "models", member.name.removeprefix(LLAMA_CPP_MEMBERS))
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
        Path(name, "models").rename(folder)
