"""The headers of a model that is not on this machine, as files with holes where its weights would be.

Whatever reads a checkpoint reads these as it reads the whole files, as long as it asks for no weight's value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from tuili.errors import DownloadError, InvalidRequestError, ModelNotFoundError
from tuili.models.names import ROPE_VECTORS
from tuili.store.offered import OfferedFile, Traffic
from tuili.weights import gguf, safetensors
from tuili.weights.gguf_parts import all_parts
from tuili.weights.hf_checkpoint import CONFIG, INDEX, WEIGHTS
from tuili.weights.json_file import parse_object

if TYPE_CHECKING:
    from tuili.store.range_file import RangeClient

_TEXTS = (CONFIG, INDEX, "generation_config.json")
_FIRST_BYTES = 1 << 20
_MAX_TEXT_BYTES = 16 << 20
_MAX_SMALL_BYTES = 1 << 20
_TIMEOUT_S = 30.0


def is_url(name: str) -> bool:
    """Whether a model is named by where it lies on a server."""
    return name.startswith(("http://", "https://"))


def write_headers(files: Sequence[OfferedFile], folder: Path) -> Path:
    """Fetches what opening a checkpoint reads into `folder`; returns the checkpoint's path.

    Raises DownloadError, ModelFileError.
    """
    ggufs = [file for file in files if file.name.lower().endswith(".gguf")]
    for file in ggufs:  # several are parts of one model
        _write_gguf(file, folder / PurePosixPath(file.name).name)
    if ggufs:
        return folder / PurePosixPath(min(file.name for file in ggufs)).name
    for file in files:
        path = folder / PurePosixPath(file.name).name
        if file.name in _TEXTS:
            path.write_bytes(_read_text(file))
        elif file.name.endswith(".safetensors"):
            _write_safetensors(file, path)
    return folder


def _write_gguf(file: OfferedFile, path: Path) -> None:
    """The header, asked for in pieces that double, and the few small tensors that a configuration is read from."""
    with file.open() as source, path.open("wb") as target:
        prefix = source.read(_FIRST_BYTES)
        while (found := gguf.find_tensors(prefix, file.name)) is None:
            more = source.read(len(prefix))
            if not more:
                raise DownloadError(f"{file.name} ends after {len(prefix)} bytes, within its header")
            prefix += more
        base, places = found
        target.write(prefix[:base])
        for start, end in (places[name] for name in ROPE_VECTORS if name in places):
            if end - start <= _MAX_SMALL_BYTES:
                source.seek(start)
                target.seek(start)
                target.write(source.read(end - start))
        _stretch(target, file)


def _write_safetensors(file: OfferedFile, path: Path) -> None:
    with file.open() as source, path.open("wb") as target:
        start = source.read(8)
        target.write(start + source.read(safetensors.header_bytes(start, file.name) - len(start)))
        _stretch(target, file)


def _stretch(target: BinaryIO, file: OfferedFile) -> None:
    """A hole up to the size that the server tells. Raises DownloadError for a size that no file here can have."""
    try:
        target.truncate(file.num_bytes)
    except (OSError, OverflowError) as error:
        raise DownloadError(f"{file.name} cannot have {file.num_bytes} bytes here: {error}") from error


def _read_text(file: OfferedFile) -> bytes:
    with file.open() as source:
        data = source.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise DownloadError(f"{file.name} has more than {_MAX_TEXT_BYTES} bytes, which is the most allowed")
    return data


@contextmanager
def files_at(url: str, traffic: Traffic) -> Iterator[Sequence[OfferedFile]]:
    """The files of a GGUF's URL, all parts where it names one, or of a folder's with config.json and safetensors.

    Raises InvalidRequestError for another URL, ModelNotFoundError, DownloadError.
    """
    import httpx

    from tuili.store.range_file import RangeClient

    parts = _split(url)
    path = parts.path.replace("/blob/", "/resolve/", 1)  # a hub's page of a file -> the file
    folder, _, name = path.rpartition("/")
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        ranges = RangeClient(client, {}, traffic)
        if name.lower().endswith(".gguf"):
            yield [
                _offered(ranges, urlunsplit(parts._replace(path=f"{folder}/{n}")), unquote(n)) for n in all_parts(name)
            ]
        elif name in ("", CONFIG, WEIGHTS, INDEX):
            base = urlunsplit(parts._replace(path=f"{folder}/", query=""))
            yield _folder_files(ranges, base)
        else:
            raise InvalidRequestError(
                f"model URL must end in .gguf, or be a folder's with {CONFIG}, ending in /, got {url!a:.200}",
                param="model",
            )


def _split(url: str) -> SplitResult:
    """Raises InvalidRequestError for what is no URL, as an address in brackets that is none."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise InvalidRequestError(f"model {url!a:.200} is no URL: {error}", param="model") from error


def _folder_files(ranges: RangeClient, base: str) -> list[OfferedFile]:
    names = [CONFIG, *_weight_names(ranges, base)]
    files = [_offered(ranges, base + name, name) for name in names]
    with suppress(ModelNotFoundError):  # few models miss it, none needs it
        files.append(_offered(ranges, f"{base}generation_config.json", "generation_config.json"))
    return files


def _weight_names(ranges: RangeClient, base: str) -> list[str]:
    try:
        ranges.open(base + WEIGHTS, WEIGHTS).close()
        return [WEIGHTS]
    except ModelNotFoundError:
        index: Mapping[str, object] = parse_object(_read_text(_offered(ranges, base + INDEX, INDEX)), INDEX)
        return [INDEX, *dict.fromkeys(safetensors.read_weight_map(index, INDEX).values())]


def _offered(ranges: RangeClient, url: str, name: str) -> OfferedFile:
    return OfferedFile(name=name, num_bytes=_size(ranges.open(url, name)), open=partial(ranges.open, url, name))


def _size(file: BinaryIO) -> int:
    with file:
        return file.seek(0, 2)
