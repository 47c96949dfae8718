"""What no HTTP client sends, on real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from support.plain_dialect import plain_dialect
from support.served import Listening, listening


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening(spoken=(plain_dialect(),), header_timeout_s=1.0, body_timeout_s=1.0) as server:
        yield server


def test_a_real_server_streams(server: Listening) -> None:
    body = {"prompts": ["abc"], "stream": True, "max_tokens": 5}
    with httpx.stream("POST", f"{server.url}/plain/generate", json=body) as response:
        assert response.status_code == 200
        assert len(list(response.iter_lines())) == 6
