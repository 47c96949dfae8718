"""Fetches pages and files over HTTP so that they survive cuts: retries, resumes, bounds. Knows no index, no model.

What lies at a `part` path is a prefix of the file; `<part>.json` beside it says of which file. Ranges
need no ETag here: the caller's sha256 has the last word.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from tuili.errors import DownloadError
from tuili.store.durable import write_atomic
from tuili.store.progress import ProgressCallback, PullProgress

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often to try again without having received anything new, and how long to wait between tries."""

    num_retries: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def delay_s(self, num_failures: int, retry_after_s: float | None) -> float:
        """Doubling, or what the server asked for; never above the bound."""
        wanted = self.first_delay_s * 2 ** (num_failures - 1) if retry_after_s is None else retry_after_s
        return min(max(wanted, 0.0), self.max_delay_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """What is known of a file before it is fetched; max_bytes bounds it where nobody told its size."""

    url: str
    name: str
    max_bytes: int
    num_bytes: int | None = None
    sha256: str | None = None

    @property
    def identity(self) -> str:
        """What a prefix on disk must belong to for it to be continued."""
        return self.sha256 or self.url


@dataclass(frozen=True, slots=True)
class Page:
    """A small document; url is where redirects ended."""

    text: str
    content_type: str
    url: str


class _TransientError(Exception):
    """Worth another try, after retry_after_s seconds if the server said so."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Downloader:
    """One HTTP client with one retry policy. Raises DownloadError only, one line saying what to do."""

    def __init__(self, client: httpx.Client, retry: RetryPolicy, progress: ProgressCallback) -> None:
        self._client = client
        self._retry = retry
        self._progress = progress

    def read_page(self, url: str, accept: str, max_bytes: int) -> Page | None:
        """A document of at most `max_bytes`; None where the server has none (404)."""

        def attempt() -> Page | None:
            with self._get(url, {"Accept": accept}) as response:
                if response.status_code in (404, 410):
                    return None
                _check_status(response)
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > max_bytes:
                        raise DownloadError(f"{_host(url)} sent a page of more than {max_bytes} bytes")
                text = body.decode(response.charset_encoding or "utf-8", errors="replace")
                return Page(text, response.headers.get("Content-Type", ""), str(response.url))

        return self._with_retries(url, attempt, lambda: 0)

    def fetch(self, file: RemoteFile, part: Path) -> None:
        """Brings `part` to the whole file, continuing a prefix of the same file. Does not verify contents."""
        self._with_retries(file.url, lambda: self._transfer(file, part), lambda: _size(part))

    def _with_retries(self, url: str, attempt: Callable[[], Result], received: Callable[[], int]) -> Result:
        num_failures = 0
        while True:
            before = received()
            try:
                return attempt()
            except _TransientError as error:
                num_failures = 1 if received() > before else num_failures + 1
                if num_failures > self._retry.num_retries:
                    raise DownloadError(
                        f"cannot download from {_host(url)}: {error}; check network and proxy, then run the same "
                        "command again: it continues where it stopped"
                    ) from error
                delay_s = self._retry.delay_s(num_failures, error.retry_after_s)
                self._progress(PullProgress(f"{error}: trying again in {delay_s:.3g} s"))
                self._retry.sleep(delay_s)

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                yield response
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL, httpx.DecodingError) as error:
            raise DownloadError(f"cannot download from {_host(url)}: {error}") from error
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise DownloadError(
                    f"{_host(url)} shows a certificate no known authority signed: "
                    "name the right authorities with SSL_CERT_FILE or PIP_CERT"
                ) from error
            raise _TransientError(str(error) or type(error).__name__) from error

    def _transfer(self, file: RemoteFile, part: Path) -> None:
        offset = _resumable_bytes(file, part)
        if offset == file.num_bytes:
            return
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._get(file.url, headers) as response:
            if response.status_code == 416 and _announced_bytes(response, offset) == offset:
                return
            if offset and response.status_code in (200, 206, 416) and not _continues(response, offset):
                discard(part)
                offset = 0
            _check_file_response(response, offset)
            total = _announced_bytes(response, offset)
            _check_size(file, total)
            write_atomic(_sidecar(part), json.dumps({"file": file.identity}).encode())
            self._receive(response, file, part, offset, total)

    def _receive(self, response: httpx.Response, file: RemoteFile, part: Path, offset: int, total: int | None) -> None:
        done = offset
        limit = total if total is not None else file.max_bytes
        with part.open("ab" if offset else "wb") as target:
            self._progress(PullProgress(file.name, done, total))
            for chunk in response.iter_raw():
                done += len(chunk)
                if done > limit:
                    raise DownloadError(f"{_host(file.url)} sent more than the {limit} bytes allowed for {file.name}")
                target.write(chunk)
                self._progress(PullProgress(file.name, done, total))
        if total is not None and done != total:
            raise _TransientError(f"{_host(file.url)} stopped after {done} of {total} bytes")


def discard(part: Path) -> None:
    """Removes a part and what is known of it."""
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)


def _sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _resumable_bytes(file: RemoteFile, part: Path) -> int:
    """How much of `file` is at `part`: nothing when it belongs to another file or is too long."""
    try:
        known = json.loads(_sidecar(part).read_bytes())
    except (OSError, ValueError):
        known = None
    size = _size(part)
    if known != {"file": file.identity} or size > (file.num_bytes or file.max_bytes):
        discard(part)
        return 0
    return size


def _continues(response: httpx.Response, offset: int) -> bool:
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and found is not None and found[1] == str(offset)


def _announced_bytes(response: httpx.Response, offset: int) -> int | None:
    """The whole file's size as the server tells it."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code in (206, 416) and found is not None:
        return None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isascii() and length.isdigit() else None


def _check_size(file: RemoteFile, total: int | None) -> None:
    if total is not None and file.num_bytes is not None and total != file.num_bytes:
        raise DownloadError(
            f"{_host(file.url)} offers {total} bytes for {file.name}, the index promised {file.num_bytes}"
        )
    if total is not None and total > file.max_bytes:
        raise DownloadError(f"{_host(file.url)} offers {total} bytes for {file.name}, at most {file.max_bytes} allowed")


def _check_status(response: httpx.Response) -> None:
    status, host = response.status_code, _host(str(response.url))
    if status in _TRANSIENT:
        raise _TransientError(f"{host} answered {status}", _retry_after_s(response.headers.get("Retry-After")))
    if status not in (200, 206):
        raise DownloadError(f"{host} answered {status} {response.reason_phrase}".rstrip())


def _check_file_response(response: httpx.Response, offset: int) -> None:
    """A range only where it continues what is there; anything else that is not the whole file is an error."""
    host = _host(str(response.url))
    if response.status_code in (206, 416) and not (offset and _continues(response, offset)):
        raise _TransientError(f"{host} answered with a range nobody asked for")
    _check_status(response)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{host} compresses what must come as it is")


def _retry_after_s(header: str | None) -> float | None:
    """Seconds from a Retry-After header (RFC 9110 10.2.3): a number, or a date."""
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (aware - datetime.now(UTC)).total_seconds()


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the index"
