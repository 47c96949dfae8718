"""Downloads: resumed, retried, bounded; every failure is one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.index_server import IndexServer, answer_status, cut_after, replace_header
from tuili.errors import DownloadError
from tuili.store.http_download import Downloader, RemoteFile, RetryPolicy
from tuili.store.progress import PullProgress

DATA = hashlib.shake_128(b"weights").digest(200_000)


class Fetcher:
    """A downloader of one file that notes delays and progress."""

    def __init__(self, server: IndexServer, folder: Path, client: httpx.Client) -> None:
        server.files["f.whl"] = DATA
        self.part = folder / "f.whl"
        self.delays: list[float] = []
        self.seen: list[PullProgress] = []
        self._url = f"{server.url}/files/f.whl"
        self._downloader = Downloader(client, RetryPolicy(sleep=self.delays.append), self.seen.append)

    def fetch(self, *, num_bytes: int | None = len(DATA), max_bytes: int = 1 << 20, url: str | None = None) -> bytes:
        file = RemoteFile(
            url=url or self._url, name="f.whl", max_bytes=max_bytes, num_bytes=num_bytes, sha256="ab" * 32
        )
        self._downloader.fetch(file, self.part)
        return self.part.read_bytes()


@pytest.fixture
def fetcher(index: IndexServer, tmp_path: Path) -> Iterator[Fetcher]:
    with httpx.Client(follow_redirects=True, max_redirects=3, timeout=60) as client:
        yield Fetcher(index, tmp_path, client)


def test_a_file_is_fetched_with_progress(fetcher: Fetcher) -> None:
    assert fetcher.fetch() == DATA
    assert fetcher.seen[0] == PullProgress("f.whl", 0, len(DATA))
    assert fetcher.seen[-1] == PullProgress("f.whl", len(DATA), len(DATA))
    assert fetcher.delays == []


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.integers(1, 150_000), max_size=6), has_ranges=st.booleans(), knows_size=st.booleans())
def test_cut_anywhere_it_is_completed_and_nothing_is_fetched_twice(
    fetcher: Fetcher, index: IndexServer, cuts: list[int], has_ranges: bool, knows_size: bool
) -> None:
    fetcher.part.unlink(missing_ok=True)
    index.has_ranges, index.faults, index.bytes_sent = has_ranges, [cut_after(cut) for cut in cuts], 0
    assert fetcher.fetch(num_bytes=len(DATA) if knows_size else None) == DATA
    index.faults.clear()
    if has_ranges:
        assert index.bytes_sent == len(DATA)


def test_an_interrupted_fetch_continues_in_the_next_one(fetcher: Fetcher, index: IndexServer) -> None:
    index.faults = [cut_after(70_000)] + [answer_status(503)] * 6
    with pytest.raises(
        DownloadError, match=r"127\.0\.0\.1: 127\.0\.0\.1 answered 503; .* it continues where it stopped"
    ):
        fetcher.fetch()
    assert fetcher.fetch() == DATA
    assert index.requested("f.whl")[-1]["Range"] == "bytes=70000-"
    assert index.bytes_sent == len(DATA)


def test_a_prefix_of_another_file_is_not_continued(fetcher: Fetcher, index: IndexServer) -> None:
    fetcher.part.write_bytes(b"x" * 1000)
    assert fetcher.fetch() == DATA
    assert "Range" not in index.requested("f.whl")[0]


def test_a_prefix_longer_than_the_file_is_dropped(fetcher: Fetcher) -> None:
    fetcher.fetch()
    fetcher.part.write_bytes(DATA + b"x")
    assert fetcher.fetch() == DATA


def test_a_complete_file_is_not_asked_for_again(fetcher: Fetcher, index: IndexServer) -> None:
    fetcher.fetch()
    assert fetcher.fetch() == DATA
    assert len(index.requested("f.whl")) == 1
    assert fetcher.fetch(num_bytes=None) == DATA  # size unknown: the server says 416 with the size
    assert index.bytes_sent == len(DATA)


def test_delays_double_and_start_again_after_progress(fetcher: Fetcher, index: IndexServer) -> None:
    index.faults = [answer_status(500), answer_status(502), cut_after(10), answer_status(504), answer_status(408)]
    assert fetcher.fetch() == DATA
    assert fetcher.delays == [0.5, 1.0, 0.5, 1.0, 2.0]


def test_retry_after_is_honoured_within_the_bound(fetcher: Fetcher, index: IndexServer) -> None:
    index.faults = [answer_status(429, Retry_After="7"), answer_status(503, Retry_After="99999")]
    assert fetcher.fetch() == DATA
    assert fetcher.delays == [7.0, 120.0]


def test_retry_after_may_be_a_date(fetcher: Fetcher, index: IndexServer) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    index.faults = [answer_status(503, Retry_After=when), answer_status(503, Retry_After="soon")]
    assert fetcher.fetch() == DATA
    assert 50 <= fetcher.delays[0] <= 60
    assert fetcher.delays[1] == 1.0


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "forbidden": (lambda: answer_status(403), "answered 403 Forbidden"),
    "gone": (lambda: answer_status(404), "answered 404 Not Found"),
    "wrong length": (
        lambda: replace_header("Content-Length", "77"),
        "offers 77 bytes for f.whl, .* promised 200000",
    ),
    "compressed": (lambda: replace_header("Content-Encoding", "gzip"), "compresses what must come as it is"),
    "redirect loop": (lambda: answer_status(302, Location="/files/f.whl"), "maximum allowed redirects"),
    "odd scheme": (lambda: answer_status(302, Location="ftp://127.0.0.1/x"), "unsupported protocol 'ftp://'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_answers_end_at_once(fetcher: Fetcher, index: IndexServer, case: str) -> None:
    fault, message = REFUSED[case]
    index.faults = [fault()] * 4  # type: ignore[list-item]
    with pytest.raises(DownloadError, match=message) as info:
        fetcher.fetch()
    assert fetcher.delays == []
    assert "\n" not in str(info.value)


def test_a_file_above_the_bound_is_refused_before_it_is_read(fetcher: Fetcher) -> None:
    with pytest.raises(DownloadError, match=r"offers 200000 bytes for f.whl, at most 1000 allowed"):
        fetcher.fetch(num_bytes=None, max_bytes=1000)


def test_a_body_without_length_is_bounded(fetcher: Fetcher, index: IndexServer) -> None:
    index.faults = [replace_header("Content-Length", "")] * 2
    with pytest.raises(DownloadError, match=r"sent more than the 1000 bytes allowed for f.whl"):
        fetcher.fetch(num_bytes=None, max_bytes=1000)
    assert fetcher.fetch(num_bytes=None) == DATA


def test_a_range_that_does_not_fit_starts_over(fetcher: Fetcher, index: IndexServer) -> None:
    index.faults = [cut_after(500), replace_header("Content-Range", "bytes 7-199999/200000")]
    assert fetcher.fetch() == DATA


def test_a_range_nobody_asked_for_is_no_file(fetcher: Fetcher, index: IndexServer) -> None:
    def partial(exchange: object) -> bool:
        exchange.status = 206  # type: ignore[attr-defined]
        return False

    index.faults = [partial] * 6
    with pytest.raises(DownloadError, match=r"a range nobody asked for"):
        fetcher.fetch()


def test_no_server_is_said_with_what_to_do(fetcher: Fetcher) -> None:
    with pytest.raises(DownloadError, match=r"cannot download from 127.0.0.1: .*; check network and proxy"):
        fetcher.fetch(url="http://127.0.0.1:1/x")
    assert len(fetcher.delays) == 5
    assert fetcher.seen[0].step.endswith("trying again in 0.5 s")


def test_credentials_do_not_follow_a_redirect_to_another_host(fetcher: Fetcher, index: IndexServer) -> None:
    elsewhere = index.url.replace("127.0.0.1", "localhost")
    index.faults = [answer_status(302, Location=f"{elsewhere}/files/f.whl")]
    assert fetcher.fetch(url=f"{index.url.replace('//', '//user:secret@')}/files/f.whl") == DATA
    assert ["Authorization" in headers for headers in index.requested("f.whl")] == [True, False]
