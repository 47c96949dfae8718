"""A missing model is fetched with bars and its license; a stored one in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.index_server import serving, tiny_model
from support.shop import Shop
from tuili.errors import ModelNotFoundError
from tuili.runtime.loading.fetching import find_model


def test_a_missing_model_is_fetched_and_its_license_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as index:
        shop = Shop(tmp_path / "store", index)
        shop.add(tiny_model(b"weights" * 1000))
        path = find_model("tiny:1", shop.store)
        assert path.read_bytes() == b"weights" * 1000
        shown = capsys.readouterr().err
        assert "tiny_1_part0-1.0-py3-none-any.whl: 100%" in shown
        assert "tiny:1 is stored; license: Apache-2.0" in shown
        assert find_model("tiny:1", shop.store) == path
        assert capsys.readouterr().err == ""
        with pytest.raises(ModelNotFoundError, match="tiny:2"):
            find_model("tiny:2", shop.store)
