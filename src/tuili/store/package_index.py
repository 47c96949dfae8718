"""Finds wheels: in folders, on find-links pages and in simple indexes (PEP 503 HTML, PEP 691 JSON).

Knows links, not models; a link may point to a file on this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from tuili.errors import DownloadError
from tuili.store.http_download import Downloader
from tuili.store.pip_settings import IndexSettings

MAX_PAGE_BYTES = 8 << 20
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelLink:
    """A wheel some index offers; sha256 and num_bytes where the index tells them."""

    file_name: str
    url: str
    sha256: str | None = None
    num_bytes: int | None = None

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine, None when it must be downloaded."""
        return file_url_path(self.url)


def find_wheels(settings: IndexSettings, downloader: Downloader, project: str, version: str) -> Iterator[WheelLink]:
    """Wheels of exactly that version, best place first; later places are asked only when needed.

    Raises DownloadError at the end when no place had one, naming what kept them from answering.
    """
    if not settings.index_urls and not settings.find_links:
        raise DownloadError("no package index is configured: install pip, or set PIP_INDEX_URL")
    indexes = [f"{url.rstrip('/')}/{normalized(project)}/" for url in settings.index_urls]
    failures, num_found = [], 0
    for place in [*settings.find_links, *indexes]:
        try:
            links = _read_place(place, downloader)
        except DownloadError as error:
            failures.append(str(error))
            continue
        for link in links:
            if _is_wheel_of(link.file_name, project, version):
                num_found += 1
                yield link
    if num_found == 0:
        raise DownloadError("; ".join(failures) or f"no configured package index offers {project} {version}")


def normalized(project: str) -> str:
    """A project's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", project).lower()


def file_url_path(url: str) -> Path | None:
    """The path of a file: URL or plain path, None for anything remote."""
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return Path(url2pathname(urlsplit(url).path))
    return None if "://" in url else Path(url).expanduser()


def parse_page(text: str, content_type: str, url: str) -> list[WheelLink]:
    """Links of an index or find-links page. Raises DownloadError when its JSON is not an index's."""
    if "json" in content_type:
        return _parse_json(text, url)
    parser = _LinkParser(url)
    parser.feed(text)
    return parser.links


def _read_place(url: str, downloader: Downloader) -> list[WheelLink]:
    path = file_url_path(url)
    if path is None:
        page = downloader.read_page(url, ACCEPT, MAX_PAGE_BYTES)
        if page is None:
            return []
        return [_with_credentials(link, url) for link in parse_page(page.text, page.content_type, page.url)]
    try:
        return _read_folder(path)
    except OSError as error:
        raise DownloadError(f"cannot read the package index {url!r}: {error.strerror}") from error


def _read_folder(path: Path) -> list[WheelLink]:
    if path.is_dir() and (path / "index.html").is_file():
        path = path / "index.html"
    if path.is_dir():
        return [WheelLink(file_name=file.name, url=file.resolve().as_uri()) for file in sorted(path.iterdir())]
    if not path.is_file() or path.stat().st_size > MAX_PAGE_BYTES:
        return []
    return parse_page(path.read_text(encoding="utf-8", errors="replace"), "text/html", path.resolve().as_uri())


def _is_wheel_of(file_name: str, project: str, version: str) -> bool:
    """Whether a name reads project-version[-build]-python-abi-platform.whl."""
    parts = file_name.removesuffix(".whl").split("-")
    is_wheel = file_name.endswith(".whl") and len(parts) in (5, 6)
    return is_wheel and normalized(parts[0]) == normalized(project) and parts[1] == version


def _with_credentials(link: WheelLink, index_url: str) -> WheelLink:
    """Gives a file the index's user and password, on the very same origin only."""
    target, index = urlsplit(link.url), urlsplit(index_url)
    same_origin = (target.scheme, target.hostname, target.port) == (index.scheme, index.hostname, index.port)
    if not same_origin or "@" not in index.netloc or "@" in target.netloc:
        return link
    url = urlunsplit(target._replace(netloc=index.netloc))
    return WheelLink(file_name=link.file_name, url=url, sha256=link.sha256, num_bytes=link.num_bytes)


class _LinkParser(HTMLParser):
    """Collects the anchors of a page, heeding its <base>."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._base = url
        self.links: list[WheelLink] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href is None:
            return
        if tag == "base":
            self._base = urljoin(self._base, href)
        elif tag == "a":
            url, fragment = urldefrag(urljoin(self._base, href))
            digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
            self.links.append(_link(unquote(url.rsplit("/", 1)[-1]), url, digest, None))


def _parse_json(text: str, url: str) -> list[WheelLink]:
    try:
        files = json.loads(text)["files"]
        return [_json_link(file, url) for file in files]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(f"{urlsplit(url).hostname} answered with JSON that is no package index: {error}") from error


def _json_link(file: dict[str, Any], base: str) -> WheelLink:
    size = file.get("size")
    num_bytes = size if isinstance(size, int) and not isinstance(size, bool) else None
    url, _ = urldefrag(urljoin(base, str(file["url"])))
    return _link(str(file["filename"]), url, file.get("hashes", {}).get("sha256"), num_bytes)


def _link(file_name: str, url: str, digest: object, num_bytes: int | None) -> WheelLink:
    sha256 = digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None
    return WheelLink(file_name=file_name, url=url, sha256=sha256, num_bytes=num_bytes)
