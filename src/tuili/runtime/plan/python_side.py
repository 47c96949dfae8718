"""What interpreter, libraries and tokenizer of a loaded model take, found by making them in a process of its own.

`python -m tuili.runtime.plan.python_side [PATH]` is that process: it makes them as loading does, says so, and waits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tuili.errors import EngineUnavailableError, ModelFileError
from tuili.machine import process_memory

_POLL_S = 0.001
# Of a vocabulary entry, where there is no tokenizer to make: between three families of 49,000 to 262,000 entries.
_KEPT_PER_TOKEN, _PEAK_PER_TOKEN = 530, 900


@dataclass(frozen=True, kw_only=True, slots=True)
class PythonSide:
    """Bytes beside weights, cache and workspace."""

    own_bytes: int  # once the model is loaded
    peak_own_bytes: int  # while its tokenizer is made
    mapped_bytes: int
    is_measured: bool  # False: the tokenizer's share is estimated from the vocabulary's size


def measure_python_side(path: Path | None, vocab_size: int) -> PythonSide:
    """`path` is a checkpoint with a tokenizer; None estimates that part. Raises ModelFileError."""
    own, peak, mapped = _measure(path)
    if path is not None:
        return PythonSide(own_bytes=own, peak_own_bytes=peak, mapped_bytes=mapped, is_measured=True)
    return PythonSide(
        own_bytes=own + vocab_size * _KEPT_PER_TOKEN,
        peak_own_bytes=own + vocab_size * _PEAK_PER_TOKEN,
        mapped_bytes=mapped,
        is_measured=False,
    )


def _measure(path: Path | None) -> tuple[int, int, int]:
    """Own bytes at the end, the most they were, and mapped bytes at the end."""
    command = [sys.executable, "-m", __spec__.name, *([] if path is None else [str(path)])]
    lines: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_read_line, args=(process.stdout, lines))
        reader.start()
        peak = 0
        while reader.is_alive():
            peak = max(peak, process_memory(process_id=process.pid)[0])
            reader.join(_POLL_S)
        own, mapped = process_memory(process_id=process.pid)
    message = json.loads(lines[0]) if lines and lines[0] else {}
    if "error" in message:
        raise ModelFileError(message["error"])
    if "ready" not in message:
        raise EngineUnavailableError(f"the process that measures memory ended with code {process.returncode}")
    return own, max(peak, own), mapped


def _read_line(stream: IO[str], lines: list[str]) -> None:
    lines.append(stream.readline())


def _make(path: Path | None) -> object:
    """Imports and makes what runtime.loading.loading does; what is returned must be kept."""
    import tuili.backends.cpu.backend
    import tuili.engine.loop
    import tuili.runtime.loading.loading
    import tuili.runtime.loading.pipeline  # noqa: F401
    from tuili.runtime.front.text_parts import open_chat_template, open_tokenizer
    from tuili.weights.checkpoint import open_checkpoint

    if path is None:
        return None
    checkpoint = open_checkpoint(path)
    tokenizer = open_tokenizer(checkpoint)
    return tokenizer, open_chat_template(checkpoint, tokenizer, None)


def _serve(path: Path | None) -> None:
    import gc

    from tuili.errors import TuiliError

    gc.disable()  # as loading does
    try:
        kept = _make(path)
    except TuiliError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return
    sys.stdout.write(json.dumps({"ready": kept is not None}) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()  # until it has been measured


if __name__ == "__main__":
    _serve(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
