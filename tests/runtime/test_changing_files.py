"""Files that become others while a model is loaded, and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.gguf_models import seeds
from tuili.errors import ModelFileError
from tuili.runtime.loading import loading
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.types import Done, GenerateRequest, SamplingParams

OPTIONS = LoadOptions(num_threads=1, max_num_seqs=1, max_num_batched_tokens=64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


def _replaced(model: Path) -> None:
    other = model.with_name("other")
    other.write_bytes(model.read_bytes())
    other.rename(model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.write_bytes(model.read_bytes()[:-1] + b"x"), "changed on disk while it was read"),
        (lambda model: model.write_bytes(model.read_bytes() + b"x"), "changed on disk while it was read"),
        (_replaced, "changed on disk while it was read"),
        (Path.unlink, "removed while it was read"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], words: str
) -> None:
    load = loading.load_backend

    def changing(*arguments: Any) -> Any:
        backend = load(*arguments)
        change(model)
        return backend

    monkeypatch.setattr(loading, "load_backend", changing)
    with pytest.raises(ModelFileError, match=f"^tiny.gguf: {words}"):
        open_model(str(model), OPTIONS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_loaded_model_needs_its_file_no_more(model: Path, backend: str) -> None:
    """Not even where it was emptied in place: nothing is read from the mapping."""
    options = LoadOptions(backend=backend, num_threads=1, max_num_seqs=1, max_num_batched_tokens=64)
    with open_model(str(model), options) as pipeline:
        model.write_bytes(b"")
        request = GenerateRequest(
            request_id="1", sampling=SamplingParams(max_tokens=3, ignore_eos=True), prompt="hello world"
        )
        *_, last = pipeline.stream(request)
        assert isinstance(last, Done)
