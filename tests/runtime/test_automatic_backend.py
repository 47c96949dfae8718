"""Where torch sees a GPU and the backend is left open: torch, or cpu for what torch refuses, which is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tuili.backends as backends
import tuili.backends.torch as torch_backend
from support.gguf_models import seeds
from tuili.backends import backend_name
from tuili.errors import InvalidRequestError, UnsupportedModelError
from tuili.runtime.loading.loading import LoadOptions, open_engine, open_model

TOLD = "the cpu backend computes, not the GPU: "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that it sees one; its backend then takes the best device there is."""
    monkeypatch.setattr(backends, "_torch_sees_a_gpu", lambda: True)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise UnsupportedModelError("test: the torch backend does not implement sinks")

    monkeypatch.setattr(torch_backend, "load", load)


def computes(model: Path, **options: Any) -> str:
    with open_model(str(model), LoadOptions(max_num_seqs=2, **options)) as pipeline:
        return backend_name(pipeline.backend)


def test_torch_computes_what_it_can(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert computes(model) == "torch"
    assert TOLD not in caplog.text


@pytest.mark.usefixtures("refusing")
def test_a_model_that_torch_refuses_is_computed_by_cpu(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert computes(model) == "cpu"
    assert f"{TOLD}test: the torch backend does not implement sinks" in caplog.text
    engine = open_engine(model, LoadOptions(max_num_seqs=2, num_threads=1))
    assert backend_name(engine.backend) == "cpu"
    engine.close()


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("options", [{"backend": "torch"}, {"device": "cuda"}])
def test_what_was_asked_for_is_refused(model: Path, options: dict[str, str]) -> None:
    with pytest.raises(UnsupportedModelError, match="does not implement sinks"):
        computes(model, **options)


def test_an_option_that_torch_refuses(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert computes(model, num_threads=1) == "cpu"
    assert f"{TOLD}num_threads must be 0 with torch, whose threads are the whole process's, not 1" in caplog.text
    with pytest.raises(InvalidRequestError, match="num_threads must be 0 with torch"):
        computes(model, num_threads=1, backend="torch")
