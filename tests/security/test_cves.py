"""The catalogue of published faults: every entry names tests that exist, or says why there is nothing to test."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "cves.toml").read_text())["entry"]
MIN_TESTED, MIN_IDS = 14, 50


@cache
def known_tests(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    path = ROOT / file
    nodes = ast.walk(ast.parse(path.read_text())) if path.is_file() else ()
    return frozenset(
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["ids"][0])
def test_an_entry_names_tests_that_exist(entry: dict[str, Any]) -> None:
    assert entry.keys() in ({"name", "ids", "tests"}, {"name", "ids", "reason"})
    assert entry.get("tests") or entry.get("reason")
    for test in entry.get("tests", ()):
        file, _, name = test.partition("::")
        assert name in known_tests(file), test


def test_the_catalogue_is_whole() -> None:
    ids = [found for entry in ENTRIES for found in entry["ids"]]
    assert len(ids) == len(set(ids)) >= MIN_IDS
    assert sum("tests" in entry for entry in ENTRIES) >= MIN_TESTED
