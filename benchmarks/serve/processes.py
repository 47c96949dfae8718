"""The servers measured, as processes of their own, and what the system says of them. Linux."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmarks.serve.client import Address, ask, get, run

from tuili.runtime.bench.peers import vllm

_READY = re.compile(r"tuili serves .* on http://([0-9.]+):(\d+)")
_START_S = 120.0
_VLLM_START_S = 1200.0


@dataclass
class Server:
    """A process that listens, and those it started."""

    process: subprocess.Popen[str]
    address: Address

    def pids(self) -> dict[str, int]:
        """By what they do: http, and its children; the first is the engine where that is a process of its own."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {"http": self.process.pid, **{f"child{n}" if n else "engine": c.pid for n, c in enumerate(children)}}

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far, by process."""
        return {name: cpu_s(pid) for name, pid in self.pids().items()}

    def own_kib(self) -> dict[str, int]:
        """Memory that is no file's, swapped out or not."""
        return {name: own_kib(pid) for name, pid in self.pids().items()}

    def handles(self) -> dict[str, int]:
        """Open descriptors and threads, by process."""
        found = {}
        for name, pid in self.pids().items():
            process = psutil.Process(pid)
            found |= {f"{name}_fds": process.num_fds(), f"{name}_threads": process.num_threads()}
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def threads_cpu_s(pid: int) -> float:
    """Processor time of a process's living threads, to the nanosecond, where cpu_s counts hundredths of a second."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def own_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(n) for n in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", status, re.MULTILINE))


@contextmanager
def tuili_server(model: str, *flags: str) -> Iterator[Server]:
    """`tuili serve MODEL FLAGS` on a free port, once it is ready; killed in the end."""
    command = [sys.executable, "-m", "tuili.cli.main", "serve", model, "--port", "0", *flags]
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TUILI_HOME": home},
        )
        try:
            yield Server(process, _address(process))
        finally:
            _end(process)


def _address(process: subprocess.Popen[str]) -> Address:
    """From the line that says it is ready; what else it says goes on to stderr. Raises RuntimeError."""
    assert process.stderr is not None
    for line in process.stderr:
        if match := _READY.match(line):
            threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
            return match[1], int(match[2])
        sys.stderr.write(line)
    raise RuntimeError("the server did not start")


def _pass_on(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)


@contextmanager
def llama_server(binary: Path, model: str, num_slots: int, context_len: int, num_threads: int) -> Iterator[Server]:
    """llama.cpp's server with a slot for each client, once it is healthy; killed in the end."""
    command = [str(binary), "-m", model, "-t", str(num_threads), "--cache-ram", "0", "--no-webui"]
    command += ["-np", str(num_slots), "-c", str(num_slots * context_len)]
    with _healthy(command, {"LD_LIBRARY_PATH": str(binary.parent)}, _START_S) as server:
        yield server


@contextmanager
def vllm_server(
    python: Path, directory: Path, dtype: str, max_num_seqs: int, context_len: int, num_threads: int
) -> Iterator[Server]:
    """vLLM's server of a Hugging Face directory, once it is healthy, which takes minutes; killed in the end.

    Eager: what it compiles for a processor was slower to come than all that is measured.
    """
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory), "--dtype", dtype]
    command += ["--max-model-len", str(context_len), "--max-num-seqs", str(max_num_seqs), "--enforce-eager"]
    command += ["--no-enable-prefix-caching"]
    variables = {**vllm.environment(python, num_threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with _healthy(command, variables, _VLLM_START_S) as server:
        yield server


@contextmanager
def _healthy(command: list[str], variables: Mapping[str, str], limit_s: float) -> Iterator[Server]:
    """The command with --host and --port of its own. Raises RuntimeError when it does not become healthy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **variables},
    )
    try:
        server = Server(process, ("127.0.0.1", port))
        until_s = time.monotonic() + limit_s
        while run(ask(server.address, get("/health"))).status != 200:
            if process.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"{process.args} did not start")
            time.sleep(0.05)
        yield server
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


async def metric(server: Server, name: str) -> float:
    """A number of /metrics, summed over its labels."""
    return (await metrics(server)).get(name, 0.0)


async def metrics(server: Server) -> dict[str, float]:
    """The numbers of /metrics by name, each summed over its labels."""
    reply = await ask(server.address, get("/metrics"))
    found: dict[str, float] = {}
    for line in reply.body.decode().splitlines():
        if not line.startswith("#"):
            labelled, _, value = line.rpartition(" ")
            name = labelled.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}
