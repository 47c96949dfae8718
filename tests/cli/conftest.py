"""The command line run in this process: its exit code and what it wrote."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.fake_pipeline import FakePipeline
from support.index_server import serving, tiny_model
from support.shop import Shop
from support.small_model import small_model
from tuili.cli.main import main
from tuili.runtime.loading.pipeline import Pipeline
from tuili.store import store as store_module

PART = random.Random(1).randbytes(10_000)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


class _Input(io.TextIOWrapper):
    """Standard input: a pipe with these bytes, or a terminal."""

    def __init__(self, data: bytes, is_terminal: bool) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


Cli = Callable[..., Outcome]
Generate = Callable[..., Outcome]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TUILI_DEBUG", raising=False)
    for name in ("TUILI_HOST", "TUILI_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    # Whatever runs on this machine is nobody's business here.
    monkeypatch.setattr("tuili.cli.remote.running_server.likely_addresses", lambda _: [])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str, stdin: bytes = b"", is_terminal: bool = False) -> Outcome:
        monkeypatch.setattr("sys.stdin", _Input(stdin, is_terminal))
        code = main(list(arguments))
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def pipeline(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """What `run` loads for the model m.gguf, which is a file beside it."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    fake = FakePipeline()
    monkeypatch.setattr("tuili.runtime.loading.loading.open_model", lambda *_: fake)
    return fake


@pytest.fixture
def loaded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Pipeline]:
    """The models loaded for m.gguf so far."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    pipelines: list[Pipeline] = []

    def open_model(_name: str, options: Any) -> Pipeline:
        pipelines.append(small_model(max_model_len=options.max_model_len or 128))
        return pipelines[-1]

    monkeypatch.setattr("tuili.runtime.loading.loading.open_model", open_model)
    return pipelines


@pytest.fixture
def generate(cli: Cli, loaded: list[Pipeline]) -> Generate:
    def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        return cli("generate", "m.gguf", *arguments, stdin=stdin)

    return run


@pytest.fixture
def shop(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The catalogue is one tiny model, in every store that is opened."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as index:
        shop = Shop(home, index)
        shop.add(tiny_model(PART))
        monkeypatch.setattr(store_module, "discovered_sources", lambda: {"pypi": shop.source})
        monkeypatch.setattr(store_module.Store.__init__, "__defaults__", (None, shop.catalogue))
        yield shop
