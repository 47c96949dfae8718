"""llama.cpp through its own meters: llama-bench for one sequence, llama-batched-bench for several.

Each workload runs with weight repacking on and off once; from then on with whichever was faster.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuili.errors import PeerError
from tuili.runtime.bench.target import PeerFlags, PeerTarget
from tuili.runtime.bench.workload import Measurement, Workload

NAME = "llama.cpp"
TOOLS = ("llama-bench", "llama-batched-bench")
_BATCH = ("-b", "2048", "-ub", "512")
REPACKED, UNPACKED = "--repack 1", "--repack 0"
_WARM_UP_LEN = 32  # a prefill before the measured one; its own warm-up would repeat that whole
_SPARE_TOKENS = 8  # of context per sequence


def check(flags: PeerFlags) -> None:
    """Raises PeerError where the tools are missing."""
    for tool in TOOLS:
        find_tool(tool, flags.peer_path)


def open_peer(target: PeerTarget) -> LlamaCpp:
    """Raises PeerError where the tools are missing."""
    return LlamaCpp(target.gguf(NAME), target.num_threads, target.peer_path)


class LlamaCpp:
    """Every measurement is a process of its own, which loads the model anew."""

    def __init__(self, model: Path, num_threads: int, folder: Path | None, name: str = NAME) -> None:
        """`folder` holds the tools, or the folder bin in it does; None looks them up in PATH. Raises PeerError."""
        self.name = name
        self._tools = {tool: find_tool(tool, folder) for tool in TOOLS}
        self._common = ("-m", str(model), "-t", str(num_threads))
        self._repacks: dict[Workload, bool] = {}
        self._has_repack = "--repack" in _output([str(self._tools["llama-bench"]), "--help"])

    @property
    def version(self) -> str:
        """The build that its meter reports."""
        row = self._bench_rows(["-p", "1", "-n", "0"])[0]
        return f"{row['build_commit']} ({row['build_number']})"

    def measure(self, workload: Workload) -> Measurement:
        """By llama.cpp's own clock. Raises PeerError."""
        if workload not in self._repacks and self._has_repack:
            runs = {repack: self._run(workload, repack) for repack in (True, False)}
            self._repacks[workload] = max(runs, key=lambda repack: runs[repack].speed)
            return runs[self._repacks[workload]]
        return self._run(workload, self._repacks.get(workload, True))

    def settings(self, workload: Workload) -> str:
        """What was chosen for a workload that has been measured."""
        return REPACKED if self._repacks.get(workload, True) else UNPACKED

    def prefer(self, workload: Workload, settings: str) -> None:
        """Runs `workload` with settings found earlier, without trying the others."""
        self._repacks[workload] = settings == REPACKED

    def close(self) -> None:
        """Nothing is kept between measurements."""

    def _run(self, workload: Workload, repack: bool) -> Measurement:
        if workload.output_len == 0:
            lengths = ["-p", f"{_WARM_UP_LEN},{workload.prompt_len}", "-n", "0", "--no-warmup"]
            row = self._bench_rows([*lengths, *_bench_repack(repack)])[-1]
            return Measurement(prefill_tokens_per_s=row["avg_ts"])
        if workload.num_seqs == 1:
            lengths = ["-p", "0", "-n", str(workload.output_len), "-d", str(workload.prompt_len)]
            row = self._bench_rows([*lengths, *_bench_repack(repack)])[0]
            return Measurement(decode_tokens_per_s=row["avg_ts"])
        return self._batched(workload, repack)

    def _bench_rows(self, arguments: Sequence[str]) -> list[dict[str, Any]]:
        output = _output([str(self._tools["llama-bench"]), *self._common, "-r", "1", "-o", "json", *arguments])
        rows: list[dict[str, Any]] = _parsed(output, "llama-bench")
        return rows

    def _batched(self, workload: Workload, repack: bool) -> Measurement:
        context = workload.num_seqs * (workload.prompt_len + workload.output_len + _SPARE_TOKENS)
        shape = ["-npp", str(workload.prompt_len), "-ntg", str(workload.output_len), "-npl", str(workload.num_seqs)]
        command = [str(self._tools["llama-batched-bench"]), *self._common, *_BATCH, "-c", str(context), *shape]
        output = _output([*command, "--output-format", "jsonl", *(() if repack else ("--no-repack",))])
        lines = [line for line in output.splitlines() if line.startswith("{")]
        row = _parsed(lines[-1] if lines else output, "llama-batched-bench")
        return Measurement(prefill_tokens_per_s=row["speed_pp"], decode_tokens_per_s=row["speed_tg"])


def find_tool(name: str, folder: Path | None) -> Path:
    """The executable `name` in `folder` or its bin, or in PATH. Raises PeerError saying what to install."""
    if folder is None:
        found = shutil.which(name)
    else:
        found = next((str(p) for p in (folder / name, folder / "bin" / name) if p.is_file()), None)
    if found is None:
        where = "PATH" if folder is None else str(folder)
        raise PeerError(f"{name} is not in {where}: build llama.cpp's tools and name their folder (--peer-path)")
    return Path(found)


def _bench_repack(repack: bool) -> tuple[str, ...]:
    return () if repack else ("--repack", "0")


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise PeerError(f"{Path(command[0]).name} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise PeerError(f"{Path(command[0]).name} failed with code {done.returncode}: {last}")
    return done.stdout


def _parsed(text: str, tool: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PeerError(f"{tool} printed no figures: {text[:200]!r}") from error
