"""What the pages in docs/ show is run, and what they list is all there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from pathlib import Path

import pytest

from support import assets
from tuili.compat import llama_cpp_arguments
from tuili.runtime import vllm_arguments

DOCS = Path(__file__).parent.parent / "docs"
COMING_FROM = DOCS / "coming_from.md"


def blocks(path: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks(COMING_FROM))))
def test_blocks_that_import_this_library_run(
    number: int, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = blocks(COMING_FROM)[number]
    code = compile(ast.parse(source), f"block {number} of {COMING_FROM.name}", "exec")
    if "tuili" not in source:
        return
    assert smollm2_gguf.is_file()
    monkeypatch.setenv("TUILI_HOME", str(assets.store_dir()))
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("mark", "names"),
    [
        ("ignored by LLM", vllm_arguments.IGNORED),
        ("refused by LLM", vllm_arguments.REFUSED),
        ("ignored by Llama", llama_cpp_arguments.IGNORED),
        ("refused by Llama", llama_cpp_arguments.REFUSED),
    ],
)
def test_the_page_lists_exactly_the_arguments_there_are(mark: str, names: Collection[str]) -> None:
    text = COMING_FROM.read_text(encoding="utf-8")
    listed = text.split(f"<!-- {mark} -->")[1].split("\n\n")[0].split(";")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(names)
