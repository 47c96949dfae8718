"""Runs `tuili` commands over the small model, each in a fork of a process that has imported everything.

    python -m support.killed_command

reads one JSON object a line: {"arguments": [...], "kill_at": N, "cut_write": [N, share], "max_file_bytes": N}, all but
the first optional, and answers each with {"code": exit code or -signal, "calls": N, "writes": N, "error": stderr}.

kill_at kills the command at its Nth call of a function, on any thread; cut_write at its Nth write, after a share
of the bytes. Killing is SIGKILL: nothing is cleaned up.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from support.small_model import small_model
from tuili.cli import generate_session  # noqa: F401  forks need not import it
from tuili.cli.main import main
from tuili.runtime.loading import loading


class KilledCommands:
    """The other end, for tests."""

    def __init__(self, folder: Path) -> None:
        tests = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.killed_command"],
            cwd=folder,
            env=environment | {"TUILI_HOME": str(folder / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **how: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, **how}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> KilledCommands:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.communicate()


class Countdown:
    """Counts calls and writes of this process, and kills it at one of them."""

    def __init__(self, kill_at: int | None, cut_write: tuple[int, float] | None) -> None:
        self.calls = self.writes = 0
        self._kill_at = kill_at
        self._cut_write = cut_write
        self._write = os.write

    def start(self) -> None:
        os.write = self.write
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)

    def stop(self) -> None:
        sys.setprofile(None)
        os.write = self._write

    def profile(self, _frame: object, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            self.calls += 1
            if self.calls == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, descriptor: int, data: bytes) -> int:
        self.writes += 1
        if self._cut_write is not None and self.writes == self._cut_write[0]:
            self._write(descriptor, bytes(data)[: int(len(data) * self._cut_write[1])])
            os.kill(os.getpid(), signal.SIGKILL)
        return self._write(descriptor, data)


def _run(command: dict[str, Any], report: int) -> None:
    """In the fork."""
    if limit := command.get("max_file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    countdown = Countdown(command.get("kill_at"), command.get("cut_write"))
    loading.open_model = lambda *_: small_model()
    countdown.start()
    code = main(command["arguments"])
    countdown.stop()
    os.write(report, json.dumps({"code": code, "calls": countdown.calls, "writes": countdown.writes}).encode())
    os._exit(0)


def _answer(command: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(errors.fileno(), 2)
            os.dup2(errors.fileno(), 1)
            _run(command, writing)
        os.close(writing)
        with os.fdopen(reading) as report:
            text = report.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        told = {"code": status, "calls": 0, "writes": 0, "error": errors.read().decode()}
    return told | (json.loads(text) if text else {})


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)  # noqa: T201
