"""The sizes and manners the code promises (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tuili

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
NATIVE = sorted((ROOT / "csrc").glob("*/*.[hci]*"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_and_functions_stay_small() -> None:
    assert len(SOURCES) > 50
    too_long = [f.name for f in [*SOURCES, *NATIVE] if len(f.read_text().splitlines()) > MAX_FILE_LINES]
    assert too_long == []
    assert [
        f"{path.name}:{f.name}"
        for path in SOURCES
        for f in _functions(path)
        if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES
    ] == []


def test_ci_checks_the_format_of_every_native_file() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in script.splitlines() if line.startswith("clang-format"))
    checked = {pattern: set(ROOT.glob(pattern)) for pattern in command.split() if pattern.startswith("csrc/")}
    assert all(checked.values()), checked
    assert set().union(*checked.values()) == set(NATIVE)


def test_native_folders_include_only_those_above_them() -> None:
    """As docs/architecture.md orders them."""
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = architecture.partition("| folder of `csrc` |")[2].partition("\n\n")[0]
    order = re.findall(r"^\| `([a-z]+)/` \|", table, re.MULTILINE)
    assert {path.parent.name for path in NATIVE} <= set(order)
    upward = [
        (path.name, included)
        for path in NATIVE
        for included in re.findall(r'^#include "(.+?)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        if order.index(included.split("/")[0]) > order.index(path.parent.name)
    ]
    assert upward == []


def test_every_file_opens_by_saying_what_it_knows() -> None:
    silent = [p for p in SOURCES if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_public_names_resolve() -> None:
    for name in tuili.__all__:
        assert getattr(tuili, name) is not None
    assert set(tuili.__all__) == set(dir(tuili))


def test_importing_tuili_loads_no_heavy_module() -> None:
    code = "import sys, tuili; print(sorted({'numpy', 'torch', 'tokenizers', 'httpx', 'jinja2'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_one_spelling_of_license() -> None:
    """As the formats, registries and files spell it: keys of JSON and names of fields are looked up by it."""
    texts = [*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    assert [path.name for path in texts if "licence" in path.read_text(encoding="utf-8")] == []
