"""Every argument of loading at the edge of its type: the model answers, or an error names the argument."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from support.gguf_models import seeds
from tuili import LLM, SamplingParams
from tuili.backend import BackendOptions
from tuili.backends import BACKENDS, load_backend
from tuili.checks import shown
from tuili.config import EngineConfig, SpeculativeConfig
from tuili.errors import ContextLengthError, InsufficientMemoryError, InvalidRequestError, TuiliError
from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.weights.checkpoint import Checkpoint, open_checkpoint


class Unprintable:
    """What nobody can show."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


EDGES: tuple[Any, ...] = (
    *(float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 0.5, 1.0, -1.5, 1e308, 5e-324, 3 + 4j),
    *(-(2**63), -1, 0, 1, 2, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**5000, True, False, None),
    *("", " ", "1", "-1", "nan", "abc", "x" * 5000, "\0", "\ud800", "../..", b"x", [], [1], (), (1,), {}, {"a": 1}),
    *({1}, range(3), print, object(), Unprintable()),
)
FLAGS_OF_VLLM = ("dtype", "gpu_memory_utilization", "swap_space", "trust_remote_code", "revision")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Checkpoint:
    return open_checkpoint(model)


@pytest.fixture(autouse=True)
def _empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path / "home"))


def accepted(name: str, use: Callable[[Any], object]) -> list[Any]:
    """The edges that work; every other one is refused in a short line that names the argument."""
    fine = []
    for value in EDGES:
        try:
            use(value)
        except TuiliError as error:
            message = str(error)
            is_about_the_request = isinstance(error, ContextLengthError | InsufficientMemoryError)
            assert name in message or is_about_the_request, (name, shown(value), message)
            assert len(message) < 600
        else:
            fine.append(value)
    return fine


@pytest.mark.parametrize("name", [*(f.name for f in fields(LLMArguments)), *FLAGS_OF_VLLM])
def test_arguments_of_llm(model: Path, name: str) -> None:
    def answer(value: Any) -> None:
        with LLM(model, **{"max_num_seqs": 2, "max_num_batched_tokens": 64, "num_threads": 1} | {name: value}) as llm:
            llm.generate("hello", SamplingParams(max_tokens=1), use_tqdm=False)

    fine = accepted(name, answer)
    defaults = {f.name: f.default for f in fields(LLMArguments)}
    assert len(fine) < 20, "nearly anything goes"
    if isinstance(default := defaults.get(name), int):
        assert {type(value) for value in fine if value is not None} <= {type(default)}


@pytest.mark.parametrize("name", [f.name for f in fields(LoadOptions)])
def test_options_of_loading(model: Path, name: str) -> None:
    def load(value: Any) -> None:
        with open_model(str(model), LoadOptions(**{"max_num_seqs": 2, "num_threads": 1} | {name: value})):
            pass

    assert len(accepted(name, load)) < 12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [f.name for f in fields(BackendOptions)])
def test_options_of_backends(checkpoint: Checkpoint, backend: str, name: str) -> None:
    def load(value: Any) -> None:
        options = BackendOptions(**{"max_model_len": 64, "num_threads": 1} | {name: value})
        load_backend(backend, checkpoint.spec, checkpoint.weights, options).close()

    assert len(accepted(name, load)) < 12


@pytest.mark.parametrize("name", [f.name for f in fields(EngineConfig)])
def test_limits_of_an_engine(name: str) -> None:
    assert len(accepted(name, lambda value: EngineConfig(**{"max_model_len": 64} | {name: value}))) < 12


@pytest.mark.parametrize("name", [f.name for f in fields(SpeculativeConfig) if isinstance(f.default, int)])
def test_settings_of_drafts(name: str) -> None:
    limits = {"prompt_lookup_min": 1}
    assert accepted(name, lambda value: SpeculativeConfig.parse(limits | {name: value})) in ([], [1], [1, 2])


@pytest.mark.parametrize(
    ("name", "words"),
    [("/dev/zero", "not a regular file"), ("pipe", "not a regular file"), ("large", "more than 262144 bytes"),
     ("latin", "not UTF-8"), ("none", "No such file or directory")],
)  # fmt: skip
def test_a_chat_template_is_a_small_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("large").write_bytes(b"x" * 262145)
    Path("latin").write_bytes(b"\xff")
    with pytest.raises(InvalidRequestError, match=f"^chat_template file '{name}': {words}$"):
        LLM(model, chat_template=name)


def test_models_are_names_or_paths(tmp_path: Path) -> None:
    assert accepted("", lambda value: LLM(value).close()) == []
    for value in (None, 5, b"x", [], "", Unprintable()):
        with pytest.raises(TuiliError, match=r"^model must be a name or a path, got "):
            LLM(value)
