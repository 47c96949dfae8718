"""The engine process over a real model: what it knows, what it leaves alone, and when it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tuili import LLM
from tuili.engine.child_process import ChildProcess
from tuili.engine.wire import FrameReader, FromEngine, Load, LoadFailed, frame
from tuili.errors import ModelFileError
from tuili.runtime.loading.loading import LoadOptions
from tuili.types import SamplingParams, TokenRequest

COMMAND = [sys.executable, "-P", "-m", "tuili.runtime.supervision.engine_process"]
OPTIONS = LoadOptions(max_model_len=512, kv_cache_memory_bytes=64 << 20)
PROMPT = "The capital of France is"


def load(
    path: Path, options: LoadOptions = OPTIONS, stamps: tuple[tuple[str, int, int, int], ...] | None = None
) -> Load:
    return Load(str(path), msgspec.Raw(msgspec.msgpack.encode(options)), stamps)


async def test_a_real_model_answers_as_in_this_process_and_needs_no_tokenizer(smollm2_gguf: Path, llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=5, n=2, max_tokens=12, logprobs=2)
    (expected,) = llm.generate([PROMPT], params, use_tqdm=False)
    child = await ChildProcess.start(COMMAND, load(smollm2_gguf))
    request = TokenRequest(
        request_id="r", prompt_token_ids=tuple(expected.prompt_token_ids or ()), sampling=params, seed=5
    )
    tokens: dict[int, list[int]] = {0: [], 1: []}
    async for deltas in child.generate(request):
        for delta in deltas:
            tokens[delta.index] += delta.token_ids
    assert [tokens[i] for i in range(2)] == [list(output.token_ids) for output in expected.outputs]
    loaded = Path(f"/proc/{child.process.pid}/maps").read_text()
    assert "_native" in loaded
    assert [name for name in ("tokenizers", "torch", "transformers", "pydantic_core") if name in loaded] == []
    facts = child.facts
    assert facts.weight_bytes > 50 << 20
    assert 0 < facts.cache_bytes <= 64 << 20
    assert (facts.max_model_len, facts.kv_cache_dtype, facts.num_threads > 0) == (512, "bfloat16", True)
    assert child.heartbeat is not None
    await child.aclose()


async def test_files_that_became_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"model.gguf: changed on disk since it was loaded"):
        await ChildProcess.start(COMMAND, load(path, stamps=(("model.gguf", 4, 0, 0),)))
    path.unlink()
    with pytest.raises(ModelFileError, match=r"model.gguf: removed from the disk"):
        await ChildProcess.start(COMMAND, load(path))


@pytest.fixture
def bare() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """An engine process at the other end of a socket that a test writes to by itself."""
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [*COMMAND, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
    return ours, process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors.decode()


def test_nonsense_on_the_socket_ends_the_process_in_one_line(
    bare: tuple[socket.socket, subprocess.Popen[bytes]],
) -> None:
    ours, process = bare
    with ours:
        ours.sendall(b"\x00\x00\x00\x30" + random.Random(1).randbytes(48))
        code, errors = finish(process)
    assert code == 70
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_it_logs_in_the_form_of_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_LOG_FORMAT", "json")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [*COMMAND, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
        ours.sendall(b"\xff" * 8)
        _, errors = finish(process)
    told = json.loads(errors)
    assert told["message"].startswith("the engine process ends: a frame of ")
    assert (told["level"], told["process"]) == ("error", process.pid)


def test_the_terminal_s_signals_are_left_to_the_parent(bare: tuple[socket.socket, subprocess.Popen[bytes]]) -> None:
    ours, process = bare
    reader: FrameReader[FromEngine] = FrameReader(FromEngine)
    list(reader.feed(ours.recv(4096)))  # a heartbeat: signals are ignored by then
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    ours.sendall(frame(load(Path("/nowhere/model.gguf"))))
    messages: list[FromEngine] = []
    while not any(isinstance(message, LoadFailed) for message in messages):
        messages += reader.feed(ours.recv(4096))
    ours.close()
    assert finish(process) == (0, "")
