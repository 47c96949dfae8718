"""What the container file, the compose file and the pages about running a server say is what the program takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.served import Listening, SmallPool, listening
from tuili.cli.commands import serve
from tuili.cli.service_session import _serve_settings
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.server.settings.serve_settings import ServeSettings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
CLIENTS = ROOT / "docs" / "clients.md"
URL = "http://127.0.0.1:8000"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def settings(words: list[str]) -> ServeSettings:
    """What `tuili serve` makes of them."""
    return _serve_settings(words, serve.command, {})


def test_the_container_copies_what_there_is_and_starts_what_there_is() -> None:
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--)(.*)", DOCKERFILE, re.MULTILINE)]
    names = [name for words in copied for name in words]
    assert {"pyproject.toml", "csrc", "src"} <= set(names)
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert set(names) == allowed
    assert all((ROOT / name).exists() for name in names)
    (command,) = re.findall(r"^CMD (.*)", DOCKERFILE, re.MULTILINE)
    assert json.loads(command) == ["serve"]
    assert "TUILI_SERVE_HOST=0.0.0.0" in DOCKERFILE
    assert DOCKERFILE.index("USER tuili") < DOCKERFILE.index("ENTRYPOINT")


def test_the_compose_file_gives_time_to_drain() -> None:
    text = (ROOT / "packaging" / "compose.yaml").read_text(encoding="utf-8")
    (command,) = re.findall(r"command: (.*)", text)
    drain_s = settings(json.loads(command)[1:]).drain_timeout_s
    (grace_s,) = re.findall(r"stop_grace_period: (\d+)s", text)
    assert int(grace_s) > drain_s + 5


@pytest.mark.parametrize("page", ["clients.md", "deployment.md"])
def test_the_flags_of_serve_are_taken(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    commands = re.findall(r"tuili serve ([^`\n]+)`", text)
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert settings([word for word in words if word != "..."]).port == 8000
    for flag in set(re.findall(r"`(--[a-z-]+)[ `]", text)):
        known = {"--dry-run", "--init", "--name", "--user", "--run-as", "--stop-timeout"}
        assert flag in known or f"`{flag}" in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), flag


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[Listening]:
    """SmolLM2 under the name that the page uses."""
    options = LoadOptions(max_model_len=512, max_num_seqs=4, kv_cache_memory_bytes=32 << 20)
    pool = SmallPool(open_model(str(smollm2_gguf), options), path=smollm2_gguf)
    pool.models["smollm2:135m"] = next(iter(pool.models.values()))
    with listening(pool=pool) as server:
        yield server


def test_the_containers_health_check_asks_the_server(server: Listening) -> None:
    (command,) = re.findall(r"^HEALTHCHECK .*?CMD (.*)", DOCKERFILE, re.MULTILINE)
    interpreter, *words = json.loads(command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
    assert interpreter == "python"
    assert subprocess.run([sys.executable, *words], check=False).returncode == 0
    gone = [word.replace(str(server.port), "1") for word in words]
    assert subprocess.run([sys.executable, *gone], check=False, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.parametrize("number", range(len(blocks(CLIENTS, "python"))))
def test_clients_run_as_shown(server: Listening, number: int) -> None:
    """In a process of its own, as clients shown like this are never closed."""
    source = blocks(CLIENTS, "python")[number]
    assert URL in source
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would fetch a list as it is imported
    command = [sys.executable, "-c", source.replace(URL, server.url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_llm_runs_as_shown(server: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = next(block for block in blocks(CLIENTS, "yaml") if "model_id" in block)
    (tmp_path / "extra-openai-models.yaml").write_text(listed.replace(URL, server.url))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (shown,) = re.findall(r"^llm -m .*", CLIENTS.read_text(encoding="utf-8"), re.MULTILINE)
    words = [*shlex.split(shown)[1:], "--key", "none"]
    done = subprocess.run([sys.executable, "-m", "llm", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
