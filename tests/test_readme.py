"""What the README says is run, and both languages say the same."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support import assets
from support.serve_process import serve_process
from tuili.store.store import Store

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _commands(path: Path) -> list[str]:
    return re.findall(r"tuili ([a-z]+)", " ".join(re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))))


def test_both_languages_show_the_same_commands_and_code() -> None:
    for language in ("sh", "python"):
        assert _blocks(ENGLISH, language) == _blocks(CHINESE, language) != []
    assert _commands(ENGLISH) == _commands(CHINESE)


def test_links_lead_somewhere() -> None:
    for path in (ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)|`(docs/[a-z_]+\.md)`", path.read_text(encoding="utf-8")):
            link = target[0] or target[1]
            assert link.startswith("https://") or (ROOT / link).exists(), link


def test_ci_runs_the_install_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'tuili run "Why is the sky blue?"' in script
    assert 'tuili run "Why is the sky blue?"' in _blocks(ENGLISH, "sh")[0]
    assert "pytest" in _blocks(ENGLISH, "sh")[1]


RUNS = {
    "run": "run smollm2:135m Hi --max-tokens 2",
    "generate": "generate smollm2:135m --count 1 --prompt Hi --max-tokens 2 --output answers.jsonl",
    "pull": "pull smollm2:135m",
    "list": "list",
    "rm": "rm gemma3:270m",
    "fsck": "fsck",
    "show": "show smollm2:135m --json",
    "explain": "explain smollm2:135m Hi --max-tokens 2 --no-inside --html page.html",
    "plan": "plan smollm2:135m --ctx 256",
    "bench": "bench smollm2:135m --batch 1 --prompt-len 4 --output-len 2 --prefill-len 0 --rounds 1",
    "doctor": "doctor",
}


@pytest.fixture(scope="module")
def home(smollm2_gguf: Path, gemma3_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both models, from which one may be removed."""
    assert smollm2_gguf.is_file()
    assert gemma3_gguf.is_file()
    folder = tmp_path_factory.mktemp("home") / "store"
    shutil.copytree(assets.store_dir(), folder, copy_function=_link)
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.mark.parametrize("command", sorted(set(_commands(ENGLISH))))
def test_every_command_named_runs(command: str, home: Path, tmp_path: Path) -> None:
    words = RUNS.get(command, f"{command} --help").split()
    result = subprocess.run(
        [sys.executable, "-m", "tuili.cli.main", *words],
        cwd=tmp_path,
        env={**os.environ, "TUILI_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_batch_job_commands_run(smollm2_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.csv").write_text("question\nHow many legs has a cat?\nWhat is 2 + 2?\n")
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line) + "\n")
    environment = {**os.environ, "TUILI_HOME": str(assets.store_dir())}
    commands = [line for block in _blocks(ENGLISH, "sh") for line in block.splitlines() if "tuili generate" in line]
    for command in commands:
        arguments = [sys.executable, "-m", "tuili.cli.main", *shlex.split(command)[1:]]
        subprocess.run(arguments, cwd=tmp_path, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert sorted(path.name for path in (tmp_path / "answers").glob("*.txt")) == [f"seed_{i}.txt" for i in range(4)]
    assert [json.loads(line)["id"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == ["0", "1"]
    answer = json.loads((tmp_path / "results.jsonl").read_text())
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("a", 200)


def test_the_serve_commands_run(smollm2_gguf: Path, tmp_path: Path) -> None:
    assert smollm2_gguf.is_file()
    (block,) = [block for block in _blocks(ENGLISH, "sh") if "tuili serve" in block]
    serve, curl, run = map(shlex.split, block.splitlines())
    with serve_process(*serve[2:], home=assets.store_dir()) as server:
        url = curl[1].replace("http://127.0.0.1:8000", server.url)
        name, value = curl[curl.index("-H") + 1].split(": ")
        told = httpx.post(url, headers={name: value}, content=curl[curl.index("-d") + 1], timeout=240)
        assert told.json()["choices"][0]["message"]["content"].strip()
        environment = {**os.environ, "TUILI_HOME": str(tmp_path), "TUILI_HOST": server.url}
        command = [sys.executable, "-m", "tuili.cli.main", *run[1:], "--max-tokens", "2", "--verbose"]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        assert f"server      {server.url}" in done.stderr.decode()


def test_the_python_example_runs(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUILI_HOME", str(assets.store_dir()))
    assert Store(assets.store_dir()).path("smollm2:135m") == smollm2_gguf
    (example,) = _blocks(ENGLISH, "python")
    exec(compile(example, str(ENGLISH), "exec"), {"__name__": "__main__"})
    assert "The capital of France is ->" in capsys.readouterr().out
