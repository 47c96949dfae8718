"""`tuili serve` on the command line: its flags, and that whatever is wrong is one line before anything is loaded."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tuili.cli.serve_options import spread_names
from tuili.server.settings import foreign_flags
from tuili.server.settings.serve_settings import all_settings

from .conftest import Cli
from .test_hostile_flags import one_line


def test_help_is_complete_and_grouped(cli: Cli) -> None:
    shown = cli("serve", "--help").out
    words = shown.replace(",", " ").split()
    for setting in all_settings().values():
        if setting.name != "models":
            assert setting.flag in words
            assert all(flag in words for flag in setting.flags)
        assert f"\n{setting.group}:\n" in shown
    _, _, without_effect = shown.partition("\nOf vLLM and LMDeploy, without effect:\n")
    ours = {flag for setting in all_settings().values() for flag in (setting.flag, *setting.flags)}
    for name in foreign_flags.known_names():
        if (flag := f"--{name.replace('_', '-')}") not in ours:
            is_shown = flag in without_effect.replace("/", " ").split()
            assert is_shown is (foreign_flags.why_without_effect(name) is not None), name
    assert "--enable-lora" not in shown  # refused


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("m --served-model-name a b --port 1", "m --served-model-name a --served-model-name b --port 1"),
        ("m --served-model-name a", "m --served-model-name a"),
        ("--served-model-name a m", "--served-model-name a m"),
        ("m n --port 1 --served-model-name a b", "m n --port 1 --served-model-name a --served-model-name b"),
        ("--port 1 m", "--port 1 m"),
    ],
)
def test_several_names_may_follow_their_flag(typed: str, meant: str) -> None:
    assert spread_names(typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--port", "x"), "--port must be an integer in [0, 65535], got 'x'"),
        (("--prot", "1"), "No such option: --prot"),
        (("--keep-alive", "soon"), "--keep-alive must be seconds"),
        (("--tensor-parallel-size", "2"), "tensor_parallel_size must be 1 for the cpu backend, got 2"),
        (("--enable-lora",), "--enable-lora=True is not implemented"),
        (("--config", "none.toml"), "none.toml': cannot be read: No such file or directory"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0 lets other machines in: give --api-key"),
        (("--ollama", "--ollama-host", "0.0.0.0", "--port", "0"), "0.0.0.0 lets other machines in"),
        (("--host", "no.such.host.invalid", "--insecure"), "cannot listen on 'no.such.host.invalid'"),
        (("--host", "192.0.2.1", "--insecure"), "cannot listen on 192.0.2.1:8000: Cannot assign requested address"),
        (("--uds", "missing/socket"), "uds: cannot listen on 'missing/socket': No such file or directory"),
        (("--ssl-keyfile", "key.pem"), "--ssl-keyfile: 'key.pem' cannot be read"),
        (("--api-key", "short"), "--api-key must be 8 to 512 printable ASCII characters"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(cli: Cli, arguments: tuple[str, ...], expected: str) -> None:
    outcome = cli("serve", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert expected in one_line(outcome.err)


def test_variables_of_the_environment_are_checked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_SERVE_MAX_NUM_SEQS", "0")
    outcome = cli("serve")
    assert (outcome.code, outcome.out) == (2, "")
    assert "TUILI_SERVE_MAX_NUM_SEQS must be an integer in [1, 16384], got 0" in one_line(outcome.err)


def test_files_that_are_no_certificate(cli: Cli, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    outcome = cli("serve", "--port", "0", "--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem")
    assert outcome.code == 2
    assert "ssl_certfile, ssl_keyfile: not a certificate and its key in PEM" in one_line(outcome.err)


def test_a_key_with_a_password(cli: Cli, tmp_path: Path) -> None:
    make_certificate(tmp_path, "-passout", "pass:secret")
    outcome = cli("serve", "--port", "0", "--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem")
    assert outcome.code == 2
    assert "or with a password" in one_line(outcome.err)


def make_certificate(folder: Path, *more: str) -> None:
    """cert.pem and key.pem for localhost."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    without_password = [] if more else ["-nodes"]
    subprocess.run([*command, *names, *without_password, *more], cwd=folder, check=True, capture_output=True)


def test_a_port_in_use(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = cli("serve", "--port", str(port))
    assert (outcome.code, outcome.out) == (2, "")
    assert one_line(outcome.err) == f"error: port {port} of 127.0.0.1 is in use: give another with --port\n"


def test_a_socket_in_use_and_one_left_behind(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = cli("serve", "--uds", "file")
    assert (outcome.code, "'file' is there and is no socket" in outcome.err) == (2, True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("taken")
        other.listen()
        outcome = cli("serve", "--uds", "taken")
    assert (outcome.code, "another server does" in outcome.err) == (2, True)
    outcome = cli("serve", "no:such", "--uds", "taken")  # nobody listens there any more
    assert "model 'no:such' is not known" in one_line(outcome.err)
    assert not (tmp_path / "taken").exists()


def test_a_model_that_cannot_be_had(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("serve", "no:such", "--port", "0")
    assert (outcome.code, outcome.out) == (1, "")
    assert "model 'no:such' is not known" in one_line(outcome.err)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    outcome = cli("serve", "broken.gguf", "--port", "0")
    assert (outcome.code, outcome.out) == (2, "")
    assert "broken.gguf" in one_line(outcome.err)


def test_two_models_of_one_name(cli: Cli) -> None:
    outcome = cli("serve", "a", "b", "--served-model-name", "c", "c", "--port", "0")
    assert outcome.code == 2
    assert "the name 'c' is given to two models" in one_line(outcome.err)


def test_what_has_no_effect_is_noted(cli: Cli) -> None:
    outcome = cli("serve", "no:such", "--port", "0", "--swap-space", "4", "--enforce-eager", "--api-server-count", "1")
    first, second, last = outcome.err.splitlines()
    assert first.startswith("note: without effect: swap_space (it has no effect on a CPU")
    assert second.startswith("note: without effect: enforce_eager")
    assert last.startswith("error: model 'no:such' is not known")
