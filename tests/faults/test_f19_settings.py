"""F19: whatever is wrong with a server's settings, its port or its store is told before anything is loaded: exit code 2
and one line, which names what to change.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuili.cli.main import main
from tuili.errors import MAX_MESSAGE_CHARS

FLAGS = {  # what is typed: what the line must say
    "--port x": "--port must be an integer in [0, 65535], got 'x'",
    "--port 65536": "--port must be an integer in [0, 65535]",
    "--server-port -1": "--port must be an integer in [0, 65535]",
    "--prot 1": "No such option: --prot",
    "--port": "requires an argument",
    "--host 0.0.0.0": "give --api-key or --api-key-file, or --insecure",
    "--host :: --port 0": "give --api-key or --api-key-file, or --insecure",
    "--host no.such.host.invalid --insecure": "cannot listen on 'no.such.host.invalid'",
    "--host 192.0.2.1 --insecure": "give --host",
    "--uds missing/socket": "uds: cannot listen on 'missing/socket'",
    "--ollama --ollama-host 0.0.0.0 --port 0": "give --api-key",
    "--ollama-host localhost:x": "--ollama-host must be an address such as",
    "--max-model-len 0": "--max-model-len must be an integer >= 1, got 0",
    "--session-len half": "--max-model-len must be an integer",
    "--max-num-seqs 0": "--max-num-seqs must be an integer in [1, 16384]",
    "--max-num-batched-tokens 4": "max_num_batched_tokens must be >= max_num_seqs = 32, got 4",
    "--gpu-memory-utilization 1.1": "--gpu-memory-utilization must be a number in (0, 1]",
    "--kv-cache-dtype fp4": "--kv-cache-dtype must be one of auto, bfloat16, int8, fp8",
    "--kv-cache-memory-bytes 4apples": "--kv-cache-memory-bytes must be bytes >= 1, such as 4GiB",
    "--block-size 48": "--block-size must be one of 16, 32, 64, 128, 256",
    "--backend gpu": "--backend must be one of cpu, reference, torch",
    "--quantization awq": "--quantization must be one of",
    "--seed -1": "--seed must be an integer >= 0",
    "--keep-alive soon": "--keep-alive must be seconds or a time such as 30s or 5m",
    "--drain-timeout -1": "--drain-timeout must be seconds >= 0",
    "--load-timeout 0": "--load-timeout must be seconds >= 1",
    "--max-loaded-models 0": "--max-loaded-models must be an integer in [1, 1000]",
    "--max-queued-requests 0": "--max-queued-requests must be an integer in [1, 1000000]",
    "--max-body-size 0": "--max-body-size must be",
    "--api-key short": "--api-key must be 8 to 512 printable ASCII characters",
    "--api-key-file none": "--api-key-file: 'none' cannot be read",
    "--ssl-certfile none.pem": "--ssl-certfile: 'none.pem' cannot be read",
    "--ssl-cert-reqs 3": "--ssl-cert-reqs must be an integer in [0, 2]",
    "--allowed-origins a.example": "--allowed-origins must be *, or a scheme and a host such as",
    "--root-path v1": "--root-path must be a path that starts with /",
    "--log-format xml": "--log-format must be one of text, json",
    "--speculative-config {": "--speculative-config must be a JSON object or 'none'",
    "--override-generation-config [1]": "--override-generation-config must be a JSON object",
    "--served-model-name a": "served_model_name needs a model to name",
    "a b --served-model-name c c --port 0": "the name 'c' is given to two models",
    "--tensor-parallel-size 2": "tensor_parallel_size must be 1 for the cpu backend, got 2",
    "--enable-lora": "--enable-lora=True is not implemented: adapters are not loaded yet",
    "--swap-space much": "--swap-space must be",
    "--config none.toml": "none.toml': cannot be read: No such file",
    "damaged.gguf --port 0": "damaged.gguf",
}
VARIABLES = {
    "TUILI_SERVE_PORT=x": "TUILI_SERVE_PORT must be an integer in [0, 65535]",
    "TUILI_SERVE_PROT=1": "TUILI_SERVE_PROT is no setting: did you mean TUILI_SERVE_PORT?",
    "TUILI_SERVE_MAX_NUM_SEQS=0": "TUILI_SERVE_MAX_NUM_SEQS must be an integer in [1, 16384]",
    "TUILI_SERVE_STRICT=perhaps": "TUILI_SERVE_STRICT must be",
    "TUILI_SERVE_CONFIG=none.toml": "none.toml': cannot be read",
    "VLLM_API_KEY=short": "VLLM_API_KEY must be 8 to 512 printable ASCII characters",
}
FILES = {
    "serve.toml: port = ": "serve.toml: not TOML",
    "serve.toml: port = 'x'": "serve.toml: port must be an integer",
    "serve.toml: prot = 1": "serve.toml: prot is no setting: did you mean port?",
    "serve.toml: strict = 1": "serve.toml: strict must be true or false",
    "serve.toml: api_key = [5]": "serve.toml: api_key must be",
    "serve.toml: max-model-len = 1\nmax_model_len = 2": "'max_model_len' is there twice",
    "serve.toml: port = 1\nserver-port = 2": "serve.toml: server_port: port says the same",
    "serve.json: {": "serve.json: not JSON",
    "serve.json: []": "serve.json: must be a JSON object",
    "serve.yaml: port: 1": "must be TOML or JSON, not YAML: write `key = value` into a .toml",
}


@pytest.fixture(autouse=True)
def _nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def assert_told(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["serve", *arguments])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert expected in err
    assert len(err) < MAX_MESSAGE_CHARS + 20


def test_there_are_sixty_faults() -> None:
    assert len(FLAGS) + len(VARIABLES) + len(FILES) > 60


@pytest.mark.parametrize("typed", FLAGS)
def test_a_wrong_flag(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_told(typed.split(), FLAGS[typed], capsys)


@pytest.mark.parametrize("said", VARIABLES)
def test_a_wrong_variable(said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(*said.split("=", 1))
    assert_told(["--port", "0"] if said != "TUILI_SERVE_PORT=x" else [], VARIABLES[said], capsys)


@pytest.mark.parametrize("file", FILES)
def test_a_wrong_file(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, text = file.partition(": ")
    (tmp_path / name).write_text(text)
    assert_told(["--config", name], FILES[file], capsys)


def test_a_port_in_use(taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"port {taken_port} of 127.0.0.1 is in use: give another with --port"
    assert_told(["--port", str(taken_port)], expected, capsys)


def test_a_socket_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("taken")
        listener.listen()
        assert_told(["--uds", "taken"], "'taken': another server does: give another with --uds", capsys)


def test_a_store_of_a_later_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "home" / "manifests" / "_" / "later" / "1.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"format": 2, "name": "later:1"}))
    assert_told(["later:1", "--port", "0"], "manifest format must be 1, found 2: upgrade tuili", capsys)
