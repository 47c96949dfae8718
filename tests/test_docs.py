"""What the pages in docs/ show is run, and what they list is all there is."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from support import assets, huggingface_folder
from tuili.compat import llama_cpp_arguments
from tuili.runtime.api import vllm_arguments

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
COMING_FROM, THEORY = DOCS / "coming_from.md", DOCS / "theory.md"
# What keeps commands short here that would go on for minutes where people type them.
SHORTER = {
    "generate": ("--max-tokens", "2"),
    "generate --count": ("--max-tokens", "2", "--count", "4"),
    "run": ("--max-tokens", "2"),
    "bench": ("--prompt-len", "4", "--output-len", "2", "--prefill-len", "8", "--rounds", "1"),
}


def blocks(path: Path, language: str = "python") -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


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


def test_theory_prints_what_it_says(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smollm2_gguf.is_file()
    monkeypatch.setenv("TUILI_HOME", str(assets.store_dir()))
    shown = blocks(THEORY, "text")
    namespace = {"__name__": "__main__"}
    for number, (source, expected) in enumerate(zip(blocks(THEORY), shown, strict=True)):
        exec(compile(source, f"block {number} of {THEORY.name}", "exec"), namespace)
        assert capsys.readouterr().out == expected, f"block {number}"


@pytest.mark.parametrize("page", [THEORY, COMING_FROM], ids=lambda path: path.stem)
def test_in_chinese_the_same_is_shown(page: Path) -> None:
    chinese = page.with_suffix(".zh-CN.md")
    for language in ("python", "text"):
        assert blocks(chinese, language) == blocks(page, language)
    for mark in ("\n## ", "\n|", "\n- "):
        assert chinese.read_text(encoding="utf-8").count(mark) == page.read_text(encoding="utf-8").count(mark)


def test_files_and_pages_named_in_theory_exist() -> None:
    for path in (THEORY, DOCS / "theory.zh-CN.md"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py|\.inl)?)`", text):
            assert (ROOT / "src" / "tuili" / name).exists() or (ROOT / name).exists(), name
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (DOCS / link).exists(), link


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
    for page in (COMING_FROM, COMING_FROM.with_suffix(".zh-CN.md")):
        text = page.read_text(encoding="utf-8")
        listed = re.split("[;；]", text.split(f"<!-- {mark} -->")[1].split("\n\n")[0])[0]
        assert set(re.findall(r"`(\w+)`", listed)) == set(names)


SERVERS = ("serve", "ps", "stop", "top")  # run for ever, or need one that does: tests/cli has them


def _commands(page: Path) -> list[list[str]]:
    """The arguments of every `tuili` command that a page shows."""
    whole = [block.replace("\\\n", " ") for block in blocks(page, "sh")]
    lines = [shlex.split(line, comments=True) for block in whole for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "tuili" and words[1] not in SERVERS]


def _write_inputs(folder: Path) -> None:
    """What the pages' commands read."""
    (folder / "questions.csv").write_text("question\nHow many legs has a cat?\nWhat is 2 + 2?\n")
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (folder / "batch.jsonl").write_text(json.dumps(line) + "\n")
    huggingface_folder.save(folder / "Qwen3-0.6B", "qwen3", head_dim=16)
    (folder / "Modelfile").write_text(blocks(DOCS / "modelfile.md", "text")[0])


@pytest.mark.parametrize("page", [p for p in sorted(DOCS.glob("*.md")) if _commands(p)], ids=lambda path: path.name)
def test_the_commands_of_a_page_run(page: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    assert smollm2_gguf.is_file()
    _write_inputs(tmp_path)
    environment = {**os.environ, "TUILI_HOME": str(assets.store_dir())}
    for words in _commands(page):
        kind = "generate --count" if "--count" in words else words[0]
        shorter = () if "batch.jsonl" in words else SHORTER.get(kind, ())  # its lines have lengths
        command = [sys.executable, "-m", "tuili.cli.main", *words, *shorter]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
