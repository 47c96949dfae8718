"""`tuili serve` as a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_READY = re.compile(r"tuili serves (.*) on (.*)")
START_S = 240.0
# Hands a listening socket over as systemd does: it is descriptor 3, and the process it is for is named.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class ServerProcess:
    """A server that is ready. `lines` are what it wrote to stderr so far."""

    process: subprocess.Popen[str]
    served: str
    urls: list[str]
    lines: list[str] = field(repr=False)

    @property
    def url(self) -> str:
        return self.urls[0]

    def wait(self, timeout_s: float = 240.0) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def children(self) -> list[int]:
        """Ids of the processes it has started that live."""
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


@contextmanager
def serve_process(
    *arguments: str,
    home: Path,
    environ: Mapping[str, str] | None = None,
    log: Path | None = None,
    listener: socket.socket | None = None,
) -> Iterator[ServerProcess]:
    """Starts `tuili serve ... --port 0` (unless a port is given) and waits until it is ready; kills it in the end.

    It takes over a `listener`, which stays open here.

    Raises AssertionError, with what it wrote, when it ends instead.
    """
    port = () if "--port" in arguments or "--uds" in arguments else ("--port", "0")
    command = [sys.executable, "-m", "tuili.cli.main", "serve", *arguments, *port]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "VLLM_"))}
    environment |= {"TUILI_HOME": str(home), **(environ or {})}
    given = () if listener is None else (listener.fileno(),)
    if given:
        command = [sys.executable, "-S", "-E", "-c", _HAND_OVER, str(given[0]), *command]
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment, pass_fds=given
        )
    lines: list[str] = []
    is_ready = threading.Event()
    reader = threading.Thread(target=_read, args=(process, lines, is_ready), daemon=True)
    reader.start()
    try:
        assert is_ready.wait(START_S), "".join(lines)
        ready = next((match for line in lines if (match := _READY.match(line))), None)
        assert ready is not None, "".join(lines)
        yield ServerProcess(process, ready[1], ready[2].split(", "), lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def _read(process: subprocess.Popen[str], lines: list[str], is_ready: threading.Event) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if _READY.match(line):
            is_ready.set()
    is_ready.set()  # it ended
