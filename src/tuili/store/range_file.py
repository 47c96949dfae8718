"""A file on a server, read in ranges as if it lay on this machine. Knows HTTP; not what the bytes mean.

Source: RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import httpx

from tuili.errors import DownloadError, ModelNotFoundError
from tuili.store.offered import Traffic

BUFFER_BYTES = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(slots=True)
class RangeClient:
    """Opens files on servers; all it receives is counted in `traffic`."""

    client: httpx.Client
    headers: Mapping[str, str] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    def open(self, url: str, name: str) -> BinaryIO:
        """Raises ModelNotFoundError where there is none, DownloadError for a server that sends no ranges."""
        return cast(BinaryIO, io.BufferedReader(_RangeFile(self, url, name), BUFFER_BYTES))

    def read(self, url: str, name: str, start: int, count: int) -> tuple[bytes, int]:
        """At most `count` bytes from `start`, and the size of the whole file."""
        host = urlsplit(url).hostname
        wanted = {**self.headers, "Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        try:
            with self.client.stream("GET", url, headers=wanted) as response:
                found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status_code == 404:
                    raise ModelNotFoundError(f"{host} has no {name}")
                if response.status_code == 200:
                    raise DownloadError(
                        f"{host} sends {name} only as a whole, not in ranges: download it and name its path"
                    )
                if response.status_code != 206 or found is None or int(found[1]) != start:
                    raise DownloadError(f"{host} answered {response.status_code} for a range of {name}")
                data = self._receive(response, count)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DownloadError(f"cannot read {name} from {host}: {error or type(error).__name__}") from error
        if len(data) != int(found[2]) - start + 1:
            raise DownloadError(f"{host} sent {len(data)} bytes of {name}, {found[0]} were promised")
        return data, int(found[3])

    def _receive(self, response: httpx.Response, count: int) -> bytes:
        """The body, no more than was asked for."""
        data = b""
        for chunk in response.iter_raw():
            data += chunk
            self.traffic.num_bytes += len(chunk)
            if len(data) > count:
                raise DownloadError(f"{response.url.host} sent more than the {count} bytes asked for")
        return data


class _RangeFile(io.RawIOBase):
    """Every read is one request."""

    def __init__(self, client: RangeClient, url: str, name: str) -> None:
        self._client, self._url, self._name = client, url, name
        self._first, self._size = client.read(url, name, 0, BUFFER_BYTES)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = min(len(view), self._size - self._position)
        if count <= 0:
            return 0
        data = self._first[self._position : self._position + count]
        if not data:
            data, _ = self._client.read(self._url, self._name, self._position, count)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
