"""The Date header, which no clock of an idle server keeps up."""

from __future__ import annotations

import email.utils
import time

import httpx

from support.served import listening


def test_every_answer_is_dated_once_and_rightly() -> None:
    with listening() as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        for path in ("/health", "/nothing"):
            (date,) = client.get(path).headers.get_list("date")
            assert abs(email.utils.parsedate_to_datetime(date).timestamp() - time.time()) < 60
