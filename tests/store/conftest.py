"""A local index, and a store below a temporary folder that pulls from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.index_server import IndexServer, serving
from support.shop import Shop


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with serving() as server:
        yield server


@pytest.fixture
def shop(tmp_path: Path, index: IndexServer) -> Shop:
    return Shop(tmp_path / "store", index)
