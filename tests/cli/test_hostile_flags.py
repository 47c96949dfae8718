"""Flags with values at the edge of their type, and variables of the environment with values that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from support.gguf_models import seeds
from tuili.cli.main import build_app
from tuili.errors import MAX_MESSAGE_CHARS
from tuili.runtime.plan.python_side import PythonSide
from tuili.runtime.plan.speed import MachineSpeed

from .conftest import Cli

_APP = typer.main.get_command(build_app())
_KINDS = {"int": int, "int range": int, "integer": int, "float": float}
NUMBERS = [
    (name, option.opts[0], _KINDS[option.type.name])
    for name, command in sorted(_APP.commands.items())  # type: ignore[attr-defined]
    for option in command.params
    if option.opts[0].startswith("--") and option.type.name in _KINDS
]
NO_NUMBERS = ("", "abc", "true", "[1]", "0x10", "1,5", "--1", "9" * 5000 + "x", "a\nb\x1b[2J")
EDGES = ("nan", "inf", "-inf", "-0.0", "-1", "0", "1", "0.5", "1e400", str(2**31), "9" * 30, "")


def one_line(err: str) -> str:
    """The only line on stderr, which is an error of bounded length."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < MAX_MESSAGE_CHARS + 20
    assert "internal error" not in err
    return err


@pytest.mark.parametrize(("command", "flag", "kind"), NUMBERS)
def test_what_is_no_number_is_refused_before_anything_else(cli: Cli, command: str, flag: str, kind: type) -> None:
    """Whatever the other arguments are: files that are missing are not even looked for."""
    for value in (*NO_NUMBERS, *(("0.5", "nan", "9" * 5000) if kind is int else ())):
        outcome = cli(command, flag, value, "missing.gguf")
        assert (outcome.code, outcome.out) == (2, ""), value
        assert flag in one_line(outcome.err)


def test_numbers_were_found() -> None:
    assert len(NUMBERS) > 20
    assert {command for command, _, _ in NUMBERS} >= {"run", "generate", "bench"}


FIRST = {
    "run": ("tiny.gguf", "hi", "--max-tokens", "1"),
    "generate": ("tiny.gguf", "--count", "2", "--prompt", "hi", "--raw", "--max-tokens", "1"),
    "explain": ("tiny.gguf", "hi", "--max-tokens", "1"),
    "plan": ("tiny.gguf",),
    "bench": ("tiny.gguf", "--batch=1", "--prompt-len=4", "--output-len=1", "--prefill-len=4", "--rounds=1"),
}
_OF_RUN = {flag for command, flag, _ in NUMBERS if command == "run"}
TRIED = [
    *(
        (command, flag)
        for command, flag, _ in NUMBERS
        if command in FIRST and (command == "run" or flag not in _OF_RUN)
    ),
    ("bench", "--batch"),
]


@pytest.mark.parametrize(("command", "flag"), TRIED)
def test_edges_of_numbers_run_or_are_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, flag: str
) -> None:
    """Flags that commands share are tried with one of them."""
    measure = MachineSpeed.measure
    side = PythonSide(own_bytes=1 << 20, peak_own_bytes=1 << 20, mapped_bytes=1 << 20, is_measured=False)
    monkeypatch.setattr("tuili.runtime.plan.plan.measure_python_side", lambda *_: side)
    monkeypatch.setattr(MachineSpeed, "measure", lambda n, _: measure(n, 0.01))
    (tmp_path / "tiny.gguf").write_bytes(seeds()["llama"].encode())
    field = flag.removeprefix("--").replace("-", "_")
    for value in EDGES:
        outcome = cli(command, *FIRST[command], flag, value)
        if outcome.code == 0:
            assert "error" not in outcome.err
        else:
            message = one_line(outcome.err)
            assert outcome.code == 2, message
            assert any(word in message for word in (field, flag, "limit", "the context holds")), message


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM", "TUILI_DEBUG", "COLUMNS", "LANG", "PYTHONIOENCODING", "HOME"])
@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "x" * 5000, "\x1b[31m"])
def test_odd_environments_change_no_answer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    outcome = cli("list", "--json")
    assert (outcome.code, outcome.out, outcome.err) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("against", "words"),
    [
        ("http://", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://a b", "is no URL"),
        ("http://host:99999999", "is no URL"),
        ("https://", "is no URL"),
        ("nobody", "against must be one of"),
        ("URL", "against must be the server's URL"),
        ("", "against must be one of"),
        ("vllm", "--peer-path"),
        ("openvino", "--peer-path"),
    ],
)
def test_a_wrong_peer_is_refused_before_the_model_is_loaded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, against: str, words: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("tuili.runtime.bench.run.open_model", lambda *_: pytest.fail("loaded"))
    outcome = cli("bench", "m.gguf", "--against", against)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
