"""`tuili service` over a systemctl that only writes down what it is asked, and the unit in systemd's own eyes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tuili.cli.service_unit import ServiceUnit, command_line
from tuili.cli.systemd import Systemd

from .conftest import Cli

_SYSTEMCTL = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.load(open({answers!r}))
action, *units = [word for word in sys.argv[1:] if not word.startswith("--")]
code, out, err = answers.get(" ".join([action, *units]), answers.get(action, [0, "", ""]))
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class FakeSystemd:
    """A systemctl on PATH. `answers`: exit code, output and errors by what is asked, with or without units."""

    def __init__(self, folder: Path) -> None:
        self._log, self._answers = folder / "log", folder / "answers"
        (folder / "bin").mkdir()
        script = folder / "bin" / "systemctl"
        script.write_text(_SYSTEMCTL.format(python=sys.executable, log=str(self._log), answers=str(self._answers)))
        script.chmod(0o755)
        self.answer(**{"is-system-running": (0, "running\n", "")})

    def answer(self, **answers: tuple[int, str, str]) -> None:
        told = json.loads(self._answers.read_text()) if self._answers.exists() else {}
        self._answers.write_text(json.dumps(told | answers))

    def calls(self) -> list[list[str]]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [[word for word in json.loads(line) if word != "--no-pager"] for line in lines]


@pytest.fixture
def systemd(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    fake = FakeSystemd(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return fake


def test_install_writes_the_unit_and_starts_it(cli: Cli, systemd: FakeSystemd, tmp_path: Path) -> None:
    outcome = cli("service", "install", "--user", "smollm2:135m", "--port", "9000")
    assert outcome.code == 0, outcome.err
    path = tmp_path / "config" / "systemd" / "user" / "tuili.service"
    unit = path.read_text()
    assert " serve smollm2:135m --port 9000\n" in unit
    assert "DynamicUser" not in unit
    assert "Requires=tuili.socket\nAfter=tuili.socket\n" in unit
    assert "ListenStream=127.0.0.1:9000\n" in path.with_suffix(".socket").read_text()
    assert systemd.calls() == [
        ["--user", "is-system-running"],
        ["--user", "daemon-reload"],
        ["--user", "enable", "tuili.socket", "tuili.service"],
        ["--user", "stop", "tuili.service"],  # it may hold the port
        ["--user", "restart", "tuili.service"],
    ]
    environment = tmp_path / "config" / "tuili" / "tuili.env"
    assert f"wrote {path}\n" in outcome.out
    assert "linger" in outcome.out
    assert environment.stat().st_mode & 0o777 == 0o600
    assert not [line for line in environment.read_text().splitlines() if not line.startswith("#")]


def test_who_installs_again_keeps_the_socket_open_where_it_stays(
    cli: Cli, systemd: FakeSystemd, tmp_path: Path
) -> None:
    def install(*arguments: str) -> list[list[str]]:
        before = len(systemd.calls())
        outcome = cli("service", "install", "--user", *arguments)
        assert outcome.code == 0, outcome.err
        return [call[1:] for call in systemd.calls()[before + 1 :] if call[1:] != ["daemon-reload"]]

    enable, restart = ["enable", "tuili.socket", "tuili.service"], ["restart", "tuili.service"]
    socket = tmp_path / "config" / "systemd" / "user" / "tuili.socket"
    install("--port", "9000")
    assert install("--port", "9000", "--max-num-seqs", "4") == [enable, restart]
    assert install("--port", "9001") == [enable, ["stop", "tuili.socket", "tuili.service"], restart]
    assert "ListenStream=127.0.0.1:9001\n" in socket.read_text()
    assert install("--port", "9001", "--no-socket") == [
        ["disable", "--now", "tuili.socket", "tuili.service"],
        ["enable", "tuili.service"],
        restart,
    ]
    assert not socket.exists()
    assert "tuili.socket" not in socket.with_suffix(".service").read_text()


@pytest.mark.parametrize(
    ("arguments", "held"),
    [
        (("--host", "0.0.0.0", "--insecure"), ["0.0.0.0:8000"]),
        (("--host", "[::]", "--insecure"), ["[::]:8000"]),
        (("--host", "0:0::0", "--insecure"), ["[::]:8000"]),
        (("--host", "::ffff:127.0.0.1", "--insecure"), []),
        (("--ollama",), ["127.0.0.1:8000", "127.0.0.1:11434"]),
        (("--port", "0"), []),
        (("--uds", "/run/tuili/socket"), []),
        (("--host", "machine.example", "--insecure"), []),
    ],
)
def test_systemd_opens_ports_whose_address_is_a_number(
    cli: Cli, systemd: FakeSystemd, arguments: tuple[str, ...], held: list[str]
) -> None:
    outcome = cli("service", "install", "--dry-run", *arguments)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.removeprefix("ListenStream=") for line in lines if line.startswith("ListenStream=")] == held
    assert ("Requires=tuili.socket" in lines) == bool(held)


def test_the_socket_is_where_the_environment_file_says(cli: Cli, systemd: FakeSystemd, tmp_path: Path) -> None:
    (tmp_path / "config" / "tuili").mkdir(parents=True)
    environment = tmp_path / "config" / "tuili" / "tuili.env"
    environment.write_text("# TUILI_SERVE_PORT=1\nTUILI_SERVE_PORT=\"9002\"\nTUILI_SERVE_API_KEY='some-key-1'\n")
    assert "ListenStream=127.0.0.1:9002\n" in cli("service", "install", "--user", "--dry-run").out
    environment.write_text("TUILI_SERVE_PORT=x\n")
    assert "TUILI_SERVE_PORT" in cli("service", "install", "--user", "--dry-run").err
    environment.write_bytes(b"TUILI_SERVE_PORT=9002\n# gr\xfc\xdfe\n")
    refused = cli("service", "install", "--user", "--dry-run")
    assert (refused.code, refused.out) == (2, "")
    assert "tuili.env is no UTF-8 text at byte 26" in refused.err


def test_a_service_for_others_gets_a_key_that_stays(cli: Cli, systemd: FakeSystemd, tmp_path: Path) -> None:
    environment = tmp_path / "config" / "tuili" / "chat.env"
    arguments = ("service", "install", "--user", "--name", "chat", "--host", "0.0.0.0")
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome.err
    first = environment.read_text()
    key = first.splitlines()[-1].removeprefix("TUILI_SERVE_API_KEY=")
    assert len(key) >= 40
    assert key not in outcome.out + outcome.err
    assert cli(*arguments).code == 0
    assert environment.read_text() == first


def test_dry_run_shows_the_unit_and_calls_nobody(cli: Cli, systemd: FakeSystemd, tmp_path: Path) -> None:
    for action in ("install", "uninstall"):
        outcome = cli("service", action, "--dry-run")
        assert (outcome.code, outcome.err) == (0, "")
    assert systemd.calls() == []
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("state", ["offline", "unknown", ""])
def test_without_systemd_it_says_so(cli: Cli, systemd: FakeSystemd, tmp_path: Path, state: str) -> None:
    systemd.answer(**{"is-system-running": (1, f"{state}\n", "Failed to connect to bus")})
    for action in ("install", "status", "uninstall"):
        outcome = cli("service", action, "--user")
        assert outcome.code == 2
        assert outcome.err.startswith("error: systemd does not manage your services")
    assert not (tmp_path / "config").exists()


def test_a_machine_without_systemctl_says_so(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    assert "systemd does not manage this machine's services" in cli("service", "status").err


def test_what_systemctl_refuses_is_told(cli: Cli, systemd: FakeSystemd) -> None:
    systemd.answer(restart=(1, "", "Job for tuili.service failed."))
    outcome = cli("service", "install", "--user")
    assert (outcome.code, outcome.err) == (
        1,
        "error: systemctl restart tuili.service: Job for tuili.service failed.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "../x"), "name must be lower case letters"),
        (("--run-as", "nobody-of-that-name"), "there is no user 'nobody-of-that-name' here"),
        (("--user", "--run-as", "root"), "run_as has no place with user"),
        (("--port", "x"), "--port must be"),
        (("--nonsense",), "No such option: --nonsense"),
        (("--api-key", "secret"), "api_key would be read by everybody in a command line"),
        (("/root/none.gguf",), "'/root/none.gguf' is in a home"),
        (("--chat-template=/home/a/t.jinja",), "'/home/a/t.jinja' is in a home"),
    ],
)
def test_wrong_arguments_change_nothing(
    cli: Cli, systemd: FakeSystemd, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = cli("service", "install", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}"), outcome.err
    assert systemd.calls() == []


def test_paths_are_seen_from_everywhere(cli: Cli, systemd: FakeSystemd, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "serve.toml").write_text("drain_timeout = 60\n")
    outcome = cli("service", "install", "--user", "--dry-run", "./m.gguf", "--config=serve.toml")
    assert f" serve {tmp_path}/m.gguf --config={tmp_path}/serve.toml\n" in outcome.out, outcome.err
    assert "TimeoutStopSec=75\n" in outcome.out


_LOADED = "LoadState=loaded\nUnitFileState=enabled\nFragmentPath=/u/tuili.service\nNRestarts=2\n"


@pytest.mark.parametrize(
    ("told", "code", "shown"),
    [
        ("LoadState=not-found\n", 4, "tuili.service is not installed\n"),
        (
            f"{_LOADED}ActiveState=active\nSubState=running\nMainPID=7\nMemoryCurrent=1048576\n"
            "ActiveEnterTimestamp=today\n",
            0,
            "service   tuili.service (enabled)\nstate     active (running)\nsince     today\nprocess   7\n"
            "memory    1 MiB\nsocket    tuili.socket (listening)\nrestarts  2\nunit      /u/tuili.service\n",
        ),
        (
            f"{_LOADED}ActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=2\n",
            3,
            "service   tuili.service (enabled)\nstate     failed (failed)\nresult    exit-code, exit code 2\n"
            "socket    tuili.socket (listening)\nrestarts  2\nunit      /u/tuili.service\n",
        ),
        (
            f"{_LOADED}ActiveState=inactive\nSubState=dead\nResult=success\nExecMainCode=2\nExecMainStatus=15\n",
            3,
            "service   tuili.service (enabled)\nstate     inactive (dead)\nresult    success, signal 15\n"
            "socket    tuili.socket (listening)\nrestarts  2\nunit      /u/tuili.service\n",
        ),
        (
            f"{_LOADED}ActiveState=inactive\nSubState=dead\nResult=success\nExecMainCode=0\nExecMainStatus=0\n",
            3,
            "service   tuili.service (enabled)\nstate     inactive (dead)\nresult    success, not started yet\n"
            "socket    tuili.socket (listening)\nrestarts  2\nunit      /u/tuili.service\n",
        ),
    ],
)
def test_status_tells_what_systemctl_knows(cli: Cli, systemd: FakeSystemd, told: str, code: int, shown: str) -> None:
    systemd.answer(show=(0, told, ""), **{"show tuili.socket": (0, "LoadState=loaded\nSubState=listening\n", "")})
    outcome = cli("service", "status")
    assert (outcome.code, outcome.out) == (code, shown)
    systemd.answer(**{"show tuili.socket": (0, "LoadState=not-found\nSubState=dead\n", "")})
    assert cli("service", "status").out == shown.replace("socket    tuili.socket (listening)\n", "")


def test_uninstall_keeps_keys(cli: Cli, systemd: FakeSystemd, tmp_path: Path) -> None:
    assert cli("service", "uninstall", "--user").err.startswith("error: tuili.service is not installed")
    assert cli("service", "install", "--user").code == 0
    outcome = cli("service", "uninstall", "--user")
    environment = tmp_path / "config" / "tuili" / "tuili.env"
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f"kept: {environment}\n")
    assert environment.exists()
    assert not (tmp_path / "config" / "systemd" / "user" / "tuili.service").exists()
    assert not (tmp_path / "config" / "systemd" / "user" / "tuili.socket").exists()
    assert systemd.calls()[-2:] == [
        ["--user", "disable", "--now", "tuili.socket", "tuili.service"],
        ["--user", "daemon-reload"],
    ]
    assert cli("service", "install", "--user", "--no-socket").code == 0
    assert cli("service", "uninstall", "--user").code == 0
    assert systemd.calls()[-2] == ["--user", "disable", "--now", "tuili.service"]


def unit(program: str, **fields: object) -> ServiceUnit:
    values = {"name": "tuili", "program": (program,), "arguments": ("a b", "50%", "$HOME", 'say "hi"', "back\\slash")}
    values |= {"environment_file": Path("/etc/tuili/tuili.env"), "drain_timeout_s": 30.0, "port": 8000}
    return ServiceUnit(**(values | fields))  # type: ignore[arg-type]


def test_a_unit_keeps_words_as_they_are() -> None:
    assert command_line(["a b", "50%", "$HOME", 'say "hi"', "back\\slash", ""]) == (
        '"a b" 50%% $$HOME "say \\"hi\\"" "back\\\\slash" ""'
    )


def test_only_low_ports_get_a_capability() -> None:
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit("/bin/true", port=443).text()
    assert "AmbientCapabilities=\n" in unit("/bin/true", port=8000).text()
    assert "AmbientCapabilities=\n" in unit("/bin/true", port=443, sockets=("0.0.0.0:443",)).text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"run_as": "root", "port": 443},
        {"is_user": True},
        {"sockets": ("127.0.0.1:8000", "[::1]:8000")},
        {"is_user": True, "sockets": ("[::]:8000",)},
    ],
)
def test_systemd_understands_the_units(tmp_path: Path, fields: dict[str, object]) -> None:
    made = unit(sys.executable, **fields)
    (tmp_path / "tuili.service").write_text(made.text())
    if made.sockets:
        (tmp_path / "tuili.socket").write_text(made.socket_text())
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    about_us = [line for line in done.stderr.splitlines() if "tuili" in line]
    assert (done.returncode, about_us) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_little_that_the_unit_exposes(tmp_path: Path) -> None:
    path = tmp_path / "tuili.service"
    path.write_text(unit(sys.executable).text())
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]  # 2.0 of 10
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_the_users_folder_is_where_systemd_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert Systemd(True).unit_folder == Path.home() / ".config" / "systemd" / "user"
    assert Systemd(False).unit_folder == Path("/etc/systemd/system")


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux's")
def test_models_run_where_no_memory_may_become_executable(smollm2_gguf: Path) -> None:
    """What MemoryDenyWriteExecute does."""
    code = (
        "import ctypes, mmap, sys, tuili.cli.main as m\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):\n"
        "    sys.exit('this kernel knows no PR_SET_MDWE')\n"
        "try:\n"
        "    mmap.mmap(-1, 4096, prot=7)\n"
        "except PermissionError:\n"
        f"    m.main(['run', '--raw', '--max-tokens', '2', '--model', {str(smollm2_gguf)!r}, 'Two and two is'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if "this kernel" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
