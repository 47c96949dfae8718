"""Fetches real models and vocabularies into a cache folder, once, each verified by sha256."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import tarfile
import tempfile
from pathlib import Path

import filelock
import httpx
import platformdirs

from tuili.errors import DownloadError, ModelNotFoundError
from tuili.store.package_index import parse_page
from tuili.store.pip_settings import pip_settings
from tuili.store.store import Store

LLAMA_CPP_PROJECT = "llama-cpp-python"
LLAMA_CPP_FILE = "llama_cpp_python-0.3.36.tar.gz"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
NODE_CLIENTS = "openai@7.57.0 ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 ollama@0.6.4"
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
            _unpack(llama_cpp_archive(), folder)
    return folder


def llama_cpp_source(member: str) -> str:
    """The text of one file of the llama-cpp-python sources. Raises AssetUnavailableError."""
    with filelock.FileLock(cache_dir() / "llama_cpp.lock"), tarfile.open(llama_cpp_archive()) as tar:
        source = tar.extractfile(f"{LLAMA_CPP_FILE.removesuffix('.tar.gz')}/{member}")
        assert source is not None
        return source.read().decode("utf-8")


def node_clients() -> Path:
    """A folder with the npm packages of NODE_CLIENTS installed. Raises AssetUnavailableError, also without npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise AssetUnavailableError("there is no npm and node")
    folder = cache_dir() / f"node-{hashlib.sha256(NODE_CLIENTS.encode()).hexdigest()[:12]}"
    with filelock.FileLock(cache_dir() / "node.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir()) as name:
                Path(name, "new").mkdir()
                Path(name, "new", "package.json").write_text('{"private": true, "type": "module"}')
                command = [npm, "install", "--silent", "--no-audit", "--no-fund", *NODE_CLIENTS.split()]
                result = subprocess.run(command, cwd=Path(name, "new"), capture_output=True, text=True, check=False)
                if result.returncode:
                    raise AssetUnavailableError(f"{NODE_CLIENTS} could not be installed: {result.stderr[-1000:]}")
                Path(name, "new").rename(folder)
    return folder


def llama_cpp_archive() -> Path:
    """llama-cpp-python's sources as they are published. Raises AssetUnavailableError."""
    archive = cache_dir() / LLAMA_CPP_FILE
    if archive.is_file():
        return archive
    settings = pip_settings()
    with httpx.Client(verify=ssl.create_default_context(), follow_redirects=True, timeout=60) as client:
        for index_url in settings.index_urls:
            try:
                if (url := _archive_url(client, index_url)) is not None:
                    _download(client, url, archive)
                    return archive
            except httpx.HTTPError as error:
                raise AssetUnavailableError(f"{LLAMA_CPP_FILE} is neither cached nor reachable: {error}") from error
    raise AssetUnavailableError(f"{LLAMA_CPP_FILE} is not cached, and no configured package index offers it")


def _archive_url(client: httpx.Client, index_url: str) -> str | None:
    if not index_url.startswith("http"):
        return None
    page = client.get(f"{index_url.rstrip('/')}/{LLAMA_CPP_PROJECT}/")
    links = parse_page(page.text, page.headers.get("content-type", ""), str(page.url)) if page.is_success else []
    return next((link.url for link in links if link.file_name == LLAMA_CPP_FILE), None)


def _download(client: httpx.Client, url: str, target: Path) -> None:
    part, digest = target.with_suffix(".part"), hashlib.sha256()
    with client.stream("GET", url) as response, part.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes(1 << 20):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != LLAMA_CPP_SHA256:
        raise AssetUnavailableError(f"{LLAMA_CPP_FILE}: found sha256 {digest.hexdigest()}, not {LLAMA_CPP_SHA256}")
    part.rename(target)


def _unpack(archive: Path, folder: Path) -> None:
    """Copies the wanted members; the folder appears only when it is complete."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as name, tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(LLAMA_CPP_MEMBERS):
                target = Path(name, "models", member.name.removeprefix(LLAMA_CPP_MEMBERS))
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
        Path(name, "models").rename(folder)
