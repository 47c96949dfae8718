"""The command as a whole: help, version, errors in one line, exit codes, speed of starting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tuili
from tuili.cli import commands
from tuili.cli.main import INTERRUPTED, build_app, main
from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.registry import discover

from .conftest import Cli

COMMANDS = sorted(discover(commands))


def test_help_names_every_command(cli: Cli) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        outcome = cli(*arguments)
        assert outcome.code == 0
        assert all(name in outcome.out for name in COMMANDS)
    assert (
        " ".join(COMMANDS)
        == "bench cp doctor explain fsck generate list plan ps pull rm run serve service show stop top"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_without_loading_anything(cli: Cli, command: str) -> None:
    outcome = cli(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Usage: tuili {command}" in outcome.out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"tuili {tuili.__version__}\n"


def test_the_package_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "tuili", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tuili {tuili.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "No such command 'nonsense'."),
        (("pull",), "Missing argument 'NAME'"),
        (("list", "--colour"), "No such option: --colour"),
        (("run", "--top-k", "many", "hi"), "Invalid value for '--top-k': "),
        (("run", "--temperature", "9", "hi"), "temperature must be in [0, 2], got 9.0"),
        (("run", "--min-tokens", "5", "--max-tokens", "3", "hi"), "min_tokens must be in [0, max_tokens = 3], got 5"),
        (("run", "one", "two"), "prompt must be one argument, found 2 starting with 'one': put it in quotes"),
        (("run", ""), "prompt is empty"),
        (("run",), "no prompt: give one, pipe text in, or chat from a terminal"),
        (("pull", "a\x1b[2J"), "model name 'a\\x1b[2J' must be"),
        (("show", "smollm2", "--path", "--template"), "only one of --tokens, --path, --rendered"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1


def _raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelNotFoundError("no\nmodel \x1b[31m"), 1, "error: no model  [31m\n"),
        (InvalidRequestError("bad"), 2, "error: bad\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
        (MemoryError(), 1, "error: out of memory\n"),
        (PermissionError(13, "Permission denied", "/x/y\n"), 1, "error: '/x/y\\n': Permission denied\n"),
        (KeyError("x"), 1, "error: internal error, KeyError: 'x' (TUILI_DEBUG=1 shows where)\n"),
    ],
)
def test_failures_end_in_a_line_and_a_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr("tuili.cli.commands.list.command", _raising(error))
    outcome = cli("list")
    assert (outcome.code, outcome.err) == (code, message)


def test_debugging_keeps_the_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuili.cli.commands.list.command", _raising(ModelNotFoundError("gone")))
    monkeypatch.setenv("TUILI_DEBUG", "1")
    with pytest.raises(ModelNotFoundError, match="gone"):
        main(["list"])


def test_a_reader_that_leaves_is_no_error(home: Path) -> None:
    command = f"{sys.executable} -m tuili.cli.main --help | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: tuili")
    assert done.stderr == ""


def _closed(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = f"exec {sys.executable} -m tuili.cli.main {' '.join(arguments)} {redirection}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(home: Path, redirection: str) -> None:
    """Nothing comes in and messages go nowhere, but output that nobody can get is an error."""
    is_open, is_heard = " >&-" not in f" {redirection}", "2>&-" not in redirection
    for arguments, out in ((("list",), "NAME  SIZE  QUANTIZATION  SOURCE  MODIFIED\n"), (("list", "--json"), "[]\n")):
        done = _closed(redirection, *arguments)
        assert (done.returncode, done.stdout) == ((0, out) if is_open else (1, ""))
        assert done.stderr == ("" if is_open or not is_heard else "error: standard output: Bad file descriptor\n")
    failed = _closed(redirection, "show", "missing.gguf")
    assert failed.returncode == 1
    assert failed.stderr == ("error: no file or folder 'missing.gguf'\n" if is_heard else "")


def test_help_without_standard_output_is_an_error(home: Path) -> None:
    done = _closed(">&-", "--help")
    assert (done.returncode, done.stderr) == (1, "error: standard output: Bad file descriptor\n")


def test_no_file_is_taken_for_a_closed_stream(home: Path) -> None:
    code = (
        "import sys, tempfile\n"
        "import tuili.cli.commands.list as command\n"
        "from tuili.cli.main import main\n"
        "command.command = lambda: [print('out'), sys.exit(tempfile.TemporaryFile().fileno())]\n"
        "main(['list'])"
    )
    done = subprocess.run(["bash", "-c", f'exec {sys.executable} -c "$0" <&- >&- 2>&-', code], check=False)
    assert done.returncode > 2


def test_a_full_disk_under_standard_output_is_one_line(home: Path) -> None:
    for arguments in (("list",), ("--help",), ("list", "--json")):
        done = _closed(">/dev/full", *arguments)
        assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


@pytest.mark.parametrize(("home_value", "named"), [("afile", "afile"), ("afile/below", "afile"), ("loop", "loop")])
@pytest.mark.parametrize("arguments", [("list",), ("fsck",), ("run", "hi"), ("pull", "smollm2"), ("rm", "smollm2")])
def test_a_home_that_is_no_folder_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_value: str, named: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "afile").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("TUILI_HOME", home_value)
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: TUILI_HOME must name a folder, {named!r} is none\n"


def test_a_home_of_nobody_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_HOME", "~nobody-of-that-name/models")
    expected = "error: TUILI_HOME must name a folder, '~nobody-of-that-name/models' has no such user\n"
    assert cli("list").err == expected


def test_starting_loads_no_heavy_module(home: Path) -> None:
    heavy = (
        "{'numpy', 'httpx', 'huggingface_hub', 'tokenizers', 'jinja2', 'rich', 'tqdm', 'certifi', 'psutil', 'asyncio'}"
    )
    code = f"import sys, tuili.cli.main as m; m.main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_shells_can_be_taught_completion(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the shell that the tests run in counts, which may be none of these.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    for shell in ("bash", "zsh", "fish"):
        command = [sys.executable, "-m", "tuili.cli.main", "--show-completion", shell]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "tuili" in done.stdout
    assert build_app() is not None


_ENDING = """
import atexit, sys, threading
from tuili.cli import main as module

class Remains:
    def __del__(self):
        sys.stdout.write("taken apart")

remains = Remains()

def main():
    atexit.register(print, "exit functions")
    if {has_thread}:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    print("done")
    return 7

module.main = main
module.program()
"""


@pytest.mark.parametrize("has_thread", [False, True])
def test_the_interpreter_is_not_taken_apart_under_threads_at_work(has_thread: bool) -> None:
    code = _ENDING.format(has_thread=has_thread)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    told = "done\nexit functions\n" + ("" if has_thread else "taken apart")
    assert (result.returncode, result.stdout, result.stderr) == (7, told, "")
