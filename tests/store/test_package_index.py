"""Finding wheels: simple indexes in HTML and JSON, find-links, folders; whose word and password goes where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.index_server import IndexServer
from tuili.errors import DownloadError
from tuili.store.http_download import Downloader, RetryPolicy
from tuili.store.package_index import MAX_PAGE_BYTES, WheelLink, file_url_path, find_wheels, normalized, parse_page
from tuili.store.pip_settings import IndexSettings
from tuili.store.progress import ignore_progress

WHEEL = "My.Model-1.0-py3-none-any.whl"
DIGEST = "ab" * 32


@pytest.fixture
def downloader() -> Iterator[Downloader]:
    with httpx.Client(follow_redirects=True, timeout=60) as client:
        yield Downloader(client, RetryPolicy(sleep=lambda _: None), ignore_progress)


def found(downloader: Downloader, *index_urls: str, find_links: tuple[str, ...] = ()) -> list[WheelLink]:
    return list(find_wheels(IndexSettings(index_urls=index_urls, find_links=find_links), downloader, "my_model", "1.0"))


def test_names_are_normalized() -> None:
    assert {normalized(name) for name in ("My.Model", "my_model", "my--model", "MY-model")} == {"my-model"}


def test_html_links_are_resolved_and_only_the_version_is_taken(index: IndexServer, downloader: Downloader) -> None:
    others = ("My.Model-1.0.tar.gz", "My.Model-1.0.1-py3-none-any.whl", "other-1.0-py3-none-any.whl", "x.whl")
    anchors = "".join(f'<a href="f/{name}">{name}</a>' for name in others)
    page = f'<html><base href="{index.url}/root/"><a>none</a>{anchors}<a href="f/{WHEEL}#sha256={DIGEST}">ok</a>'
    index.pages["/simple/my-model/"] = ("text/html", page)
    assert found(downloader, f"{index.simple_url}/") == [
        WheelLink(file_name=WHEEL, url=f"{index.url}/root/f/{WHEEL}", sha256=DIGEST)
    ]
    assert "vnd.pypi.simple.v1+json" in index.requested("my-model")[0]["Accept"]


def test_json_gives_hash_and_size(index: IndexServer, downloader: Downloader) -> None:
    files = [
        {"filename": WHEEL, "url": "/f/x.whl", "hashes": {"sha256": DIGEST}, "size": 7},
        {"filename": WHEEL, "url": "y.whl#frag", "hashes": {"sha256": "../../x"}, "size": True},
    ]
    index.pages["/simple/my-model/"] = ("application/vnd.pypi.simple.v1+json", json.dumps({"files": files}))
    assert found(downloader, index.simple_url) == [
        WheelLink(file_name=WHEEL, url=f"{index.url}/f/x.whl", sha256=DIGEST, num_bytes=7),
        WheelLink(file_name=WHEEL, url=f"{index.url}/simple/my-model/y.whl"),
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": [{}]}', '{"files": [3]}', "[" * 10**5])
def test_json_that_is_no_index_is_said(text: str) -> None:
    with pytest.raises(DownloadError, match=r"example\.org answered with JSON that is no package index"):
        parse_page(text, "application/json", "https://example.org/")


@given(st.text(st.sampled_from("<>a href='\"#=/:&;!-[]?\0é"), max_size=60))
def test_any_page_parses(text: str) -> None:
    for link in parse_page(text, "text/html", "https://example.org/simple/x/"):
        assert isinstance(link.url, str)


def test_folders_and_file_urls_are_places(tmp_path: Path, downloader: Downloader) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WHEEL).write_bytes(b"1")
    project = tmp_path / "simple" / "my-model"
    project.mkdir(parents=True)
    (project / "index.html").write_text(f'<a href="../../links/{WHEEL}#sha256={DIGEST}">w</a>')
    links = found(
        downloader, (tmp_path / "simple").as_uri(), find_links=(str(tmp_path / "links"), str(tmp_path / "no"))
    )
    assert [link.path for link in links] == [tmp_path / "links" / WHEEL] * 2
    assert [link.sha256 for link in links] == [None, DIGEST]


def test_a_find_links_page_is_a_place(index: IndexServer, downloader: Downloader) -> None:
    index.pages["/links"] = ("text/html", f'<a href="{WHEEL}">w</a>')
    assert found(downloader, find_links=(f"{index.url}/links",))[0].url == f"{index.url}/{WHEEL}"


def test_later_places_are_asked_only_when_needed(index: IndexServer, downloader: Downloader) -> None:
    index.pages["/simple/my-model/"] = ("text/html", f'<a href="{WHEEL}">w</a>')
    settings = IndexSettings(index_urls=(index.simple_url, f"{index.url}/second"))
    assert next(find_wheels(settings, downloader, "my-model", "1.0")).file_name == WHEEL
    assert index.requested("second") == []


def test_a_place_that_fails_does_not_hide_the_others(index: IndexServer, downloader: Downloader) -> None:
    index.pages["/simple/my-model/"] = ("text/html", f'<a href="{WHEEL}">w</a>')
    assert len(found(downloader, "http://127.0.0.1:1/simple", index.simple_url)) == 1


def test_nothing_found_says_why(index: IndexServer, downloader: Downloader) -> None:
    with pytest.raises(DownloadError, match=r"no configured package index offers my_model 1\.0"):
        found(downloader, index.simple_url)
    with pytest.raises(DownloadError, match=r"no package index is configured: install pip, or set PIP_INDEX_URL"):
        found(downloader)
    with pytest.raises(DownloadError, match=r"cannot download from 127\.0\.0\.1"):
        found(downloader, "http://127.0.0.1:1/simple")


def test_a_page_too_large_is_refused(index: IndexServer, downloader: Downloader) -> None:
    index.pages["/simple/my-model/"] = ("text/html", " " * (MAX_PAGE_BYTES + 1))
    with pytest.raises(DownloadError, match=f"a page of more than {MAX_PAGE_BYTES} bytes"):
        found(downloader, index.simple_url)


def test_credentials_go_to_the_same_origin_only(index: IndexServer, downloader: Downloader) -> None:
    own, foreign = f"{index.url}/{WHEEL}", f"https://files.example.org/{WHEEL}"
    index.pages["/simple/my-model/"] = ("text/html", f'<a href="{own}">a</a><a href="{foreign}">b</a>')
    links = found(downloader, index.simple_url.replace("//", "//user:secret@"))
    assert [link.url for link in links] == [own.replace("//", "//user:secret@"), foreign]


def test_only_remote_urls_are_downloaded() -> None:
    assert file_url_path("https://example.org/a") is None
    assert file_url_path("file:///a%20b") == Path("/a b")
    assert file_url_path("wheels") == Path("wheels")
