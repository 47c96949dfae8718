"""Damaged and odd files given to the command: one line, exit code 2, nothing printed and nothing left behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from support.gguf_corruptions import CORRUPTIONS

from .conftest import Cli


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(cli: Cli, folder: Path, *arguments: str) -> str:
    """The one line a command refuses with; the folder and the store are as before."""
    before = _tree(folder)
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert "internal error" not in outcome.err
    assert str(folder) not in outcome.err
    assert _tree(folder) == before
    return outcome.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_named_corruptions(cli: Cli, tmp_path: Path, name: str) -> None:
    file, words = CORRUPTIONS[name]
    (tmp_path / "model.gguf").write_bytes(file.encode())
    for arguments in (("show", "model.gguf"), ("run", "model.gguf", "hi"), ("show", "model.gguf", "--tokens", "a")):
        message = refused(cli, tmp_path, *arguments)
        assert message.startswith("model.gguf: ")
        assert words in message


@pytest.mark.parametrize("size", [0, 1, 3, 4, 8, 23, 24, 60])
def test_truncated_files(cli: Cli, tmp_path: Path, size: int) -> None:
    file, _ = CORRUPTIONS["DATA_NOT_ENOUGH_DATA"]
    (tmp_path / "model.gguf").write_bytes(file.encode()[:size])
    assert refused(cli, tmp_path, "run", "model.gguf", "hi").startswith("model.gguf: ")


@pytest.fixture
def odd_paths(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    return tmp_path


@pytest.mark.parametrize("command", ["show", "run"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/dev/null", "null: neither a file nor a folder"),
        ("/dev/zero", "zero: neither a file nor a folder"),
        ("./pipe", "pipe: neither a file nor a folder"),
        ("./socket", "socket: neither a file nor a folder"),
        ("./folder", "folder: holds nothing, a model is a .gguf file or config.json with model.safetensors"),
        ("./empty.gguf", "empty.gguf: 0 bytes, a model file is not empty"),
        ("./text.gguf", "text.gguf: starts with b'hell', a GGUF file starts with b'GGUF'"),
    ],
)
def test_paths_that_hold_no_model(cli: Cli, odd_paths: Path, command: str, name: str, words: str) -> None:
    arguments = ("hi",) if command == "run" else ()
    assert refused(cli, odd_paths, command, name, *arguments) == words


@pytest.mark.parametrize("name", ["./loop.gguf", "./missing.gguf", "../missing", "./missing"])
def test_paths_that_lead_nowhere(cli: Cli, odd_paths: Path, name: str) -> None:
    outcome = cli("run", name, "hi")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", f"error: no file or folder {name!r}\n")
