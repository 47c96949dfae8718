"""`tuili explain` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Cli

ARGUMENTS = ("--max-tokens", "2", "--no-inside", "--num-threads", "1")


def test_words_json_and_a_page(cli: Cli, smollm2_gguf: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = cli("explain", str(smollm2_gguf), "Hi", "--json", "--html", str(page), *ARGUMENTS)
    assert outcome.code == 0, outcome.err
    value = json.loads(outcome.out)
    assert len(value["generated"]) == 2
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "page.html is written" in outcome.err


def test_a_page_that_cannot_be_written_is_refused_first(cli: Cli, smollm2_gguf: Path, tmp_path: Path) -> None:
    outcome = cli("explain", str(smollm2_gguf), "Hi", "--html", str(tmp_path / "no" / "page.html"))
    assert outcome.code == 2
    assert "page.html" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_folder_is_no_page(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("explain", "never-looked-for", "Hi", "--html", str(tmp_path))
    assert (outcome.code, outcome.err) == (2, f"error: --html {tmp_path}: a folder, not a file\n")


def test_an_unknown_model(cli: Cli) -> None:
    outcome = cli("explain", "never/heard-of.gguf", "Hi")
    assert outcome.code != 0
    assert outcome.err.startswith("error: ")
