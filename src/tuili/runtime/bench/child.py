"""A peer that runs under its own interpreter, spoken to over pipes (children/serve.py)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from tuili.errors import PeerError
from tuili.runtime.bench.workload import Measurement, Trace, Workload

CHILDREN = Path(__file__).parent / "children"
_TAIL = 5  # lines of standard error shown when a child dies


class ChildPeer:
    """Starts children/MODULE.py at once and keeps it until close()."""

    def __init__(
        self,
        name: str,
        python: Path,
        module: str,
        arguments: Sequence[str],
        *,
        vocab_size: int,
        rng: random.Random,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Raises PeerError when the peer does not come up."""
        self.name = name
        self._vocab_size, self._rng = vocab_size, rng
        self._errors: deque[str] = deque(maxlen=_TAIL)
        try:
            self._process = subprocess.Popen(
                [str(python), str(CHILDREN / "serve.py"), module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(CHILDREN), **(environment or {})},
            )
        except OSError as error:
            raise PeerError(f"{name}: {python} cannot be started: {error.strerror}") from error
        self._reader = Thread(target=self._drain, daemon=True)
        self._reader.start()
        try:
            self.version = str(self._receive()["version"])
        except PeerError:
            self.close()
            raise

    def measure(self, workload: Workload) -> Measurement:
        """Raises PeerError."""
        return Measurement.of(self.trace(workload.prompts(self._vocab_size, self._rng), workload.max_tokens))

    def trace(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> Trace:
        """Runs the prompts together."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error
        times = self._receive()["token_times_s"]
        if len(times) != len(prompts) or not all(len(own) == max_tokens for own in times):
            raise PeerError(f"{self.name} made {[len(own) for own in times]} tokens, {max_tokens} each were asked for")
        return Trace(num_prompt_tokens=sum(map(len, prompts)), token_times_s=tuple(map(tuple, times)))

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # a child that died never read what was buffered for it
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise PeerError(f"{self.name}: {message['error']}")
        return message

    def _drain(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                if line.strip():
                    self._errors.append(line.strip())

    def _death(self) -> PeerError:
        code = self._process.wait()
        self._reader.join()
        return PeerError(f"{self.name} ended with code {code}: {' | '.join(self._errors) or 'no message'}")
