"""pip's settings are ours: files, variables and precedence as pip itself merges them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tuili.store import pip_settings as module
from tuili.store.pip_settings import IndexSettings, default_index, pip_settings, settings_from


def test_the_strongest_section_wins() -> None:
    values = {"global.index-url": "g", "install.index-url": "i", "download.index-url": "d", ":env:.index-url": "e"}
    for expected in "edig":
        assert settings_from(values, "default").index_urls == (expected,)
        values = dict(list(values.items())[:-1])
    assert settings_from(values, "default").index_urls == ("default",)
    assert settings_from(values, None).index_urls == ()


def test_extra_places_and_no_index() -> None:
    values = {"global.extra-index-url": "a\nb", ":env:.find-links": "/w /x", "global.cert": "/c", "global.proxy": "p"}
    expected = IndexSettings(index_urls=("d", "a", "b"), find_links=("/w", "/x"), ca_file="/c", proxy="p")
    assert settings_from(values, "d") == expected
    assert settings_from(values | {":env:.no-index": "1"}, "d").index_urls == ()
    assert settings_from(values | {":env:.no-index": "false"}, "d").index_urls == ("d", "a", "b")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://global.example/simple\nextra-index-url =\n    https://a.example\n"
                      "    https://b.example\n[install]\nfind-links = /wheel's\n")  # fmt: skip
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return config


def test_a_configuration_file_and_the_environment_are_read_by_pip(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    settings = pip_settings()
    assert settings.index_urls[0] == "https://global.example/simple"
    assert settings.index_urls[-2:] == ("https://a.example", "https://b.example")
    assert settings.find_links == ("/wheel's",)
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert pip_settings().index_urls[0] == "https://env.example/simple"


def test_without_pip_the_environment_decides(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/nonexistent/python")
    monkeypatch.setitem(sys.modules, "pip._internal.models.index", None)
    assert default_index() is None
    assert pip_settings().index_urls == ()
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert pip_settings().index_urls == ("https://env.example/simple",)


def test_pip_knows_its_default() -> None:
    pytest.importorskip("pip")
    default = default_index()
    assert default is not None
    assert default.startswith("https://")
