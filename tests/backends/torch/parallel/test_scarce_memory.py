"""Two processes of which one has no memory for a step: both compute it in parts, and neither waits for the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import support.scarce_rank
from support.batches import Driver, Work, sampling_arrays
from support.gguf_models import seeds
from support.random_models import decoder, random_weights
from tuili.backend import Backend, BackendOptions, StepResult, WeightSource
from tuili.backends import load_backend
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import repeat
from tuili.backends.torch.parallel import ParallelBackend, group
from tuili.config import EngineConfig
from tuili.errors import DeviceFailureError, InsufficientMemoryError
from tuili.weights.checkpoint import open_checkpoint

OPTIONS = BackendOptions(max_model_len=64, device="cpu", deterministic=True)
TEXT = np.random.default_rng(7).integers(0, 60, 40).tolist()
ROWS: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 7, "top_k": 20}]
PLENTY = {"reserve": 1 << 60, "tokens": 1 << 20}


class Scarce:
    """Two ranks, of which either can be left without memory."""

    def __init__(self, backend: ParallelBackend, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend, self._file = backend, file
        self.own = 1 << 60
        self.asked: list[int] = []
        real = TorchBackend.reserve

        def reserve(first: TorchBackend, num_bytes: int) -> None:
            self.asked.append(num_bytes)
            if num_bytes > self.own:
                raise InsufficientMemoryError("nothing left")
            real(first, num_bytes)

        monkeypatch.setattr(TorchBackend, "reserve", reserve)

    def limit(self, rank: int, num_bytes: int) -> None:
        """What that rank has for a step."""
        self.tell(**PLENTY)
        self.own = num_bytes if rank == 0 else 1 << 60
        if rank:
            self.tell(**PLENTY | {"reserve": num_bytes})

    def tell(self, **values: int) -> None:
        self._file.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


def loaded(path: Path, size: int) -> Backend:
    checkpoint = open_checkpoint(path)
    options = replace(OPTIONS, tensor_parallel_size=size, source=WeightSource(str(path)))
    return load_backend("torch", checkpoint.spec, checkpoint.weights, options)


@pytest.fixture
def scarce(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scarce]:
    file = tmp_path / "limits.json"
    file.write_text(json.dumps(PLENTY))
    command = (sys.executable, "-P", support.scarce_rank.__file__, str(file))
    monkeypatch.setattr(group, "COMMAND", command)
    backend = loaded(tiny, 2)
    assert isinstance(backend, ParallelBackend)
    yield Scarce(backend, file, monkeypatch)
    backend.close()


def texts_of(driver: Driver) -> list[StepResult]:
    """Two prompts of 20 tokens each, and what follows from the tokens that were chosen."""
    texts = [driver.text() for _ in ROWS]
    sampling = sampling_arrays(ROWS)
    works = [Work(text, TEXT[i : i + 20], 5) for i, text in enumerate(texts)]
    steps = [driver.step(works, sampling=sampling_arrays([row for row in ROWS for _ in range(5)]))]
    for _ in range(3):
        steps.append(driver.step([Work(text, [0], carry=True) for text in texts], sampling=sampling))
    return steps


def test_what_one_rank_has_no_memory_for_all_compute_in_parts(scarce: Scarce, tiny: Path) -> None:
    expected = texts_of(Driver(loaded(tiny, 1)))
    backend = scarce.backend
    process_ids = backend.process_ids
    for rank in (1, 0):
        driver = Driver(backend)
        batch = driver.batch([Work(driver.text(), TEXT[:10], 5)])
        scarce.limit(rank, backend._first.step_bytes(batch) + backend._first.graph_bytes)
        found = texts_of(Driver(backend))
        assert [step.token_ids.tolist() for step in found] == [step.token_ids.tolist() for step in expected]
        assert found[0].max_tokens is not None
        assert found[0].max_tokens <= 20
        assert not found[0].failures
        backend._steps.max_tokens = None
        backend._reserved = 0
    assert backend.process_ids == process_ids
    scarce.limit(1, 0)
    assert list(texts_of(Driver(backend))[0].failures) == [0, 1]  # not even one token: texts end, the group does not
    backend._steps.max_tokens = None
    scarce.limit(1, 1 << 60)
    del scarce.asked[:]
    again = texts_of(Driver(backend))
    assert [step.token_ids.tolist() for step in again] == [step.token_ids.tolist() for step in expected]
    assert len(scarce.asked) == 1  # steps no larger than one before are not asked about
    backend.allocate_cache([64])
    texts_of(Driver(backend))
    assert len(scarce.asked) == 2  # another cache may have taken what there was
    scarce.tell(**PLENTY | {"tokens": 3})
    with pytest.raises(DeviceFailureError, match="rank 1 of 2 found no memory in the middle of a step"):
        texts_of(Driver(backend))


def test_graphs_that_have_their_memory_need_no_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one process: all that could be left of its memory is in the graphs."""
    spec = decoder()
    alone = load_backend("torch", spec, random_weights(spec), OPTIONS)
    assert isinstance(alone, TorchBackend)
    alone.graphs = alone.captured_by(repeat)
    free, asked = [1 << 60], []

    def reserve(_: TorchBackend, num_bytes: int) -> None:
        asked.append(num_bytes)
        if num_bytes > free[0]:
            raise InsufficientMemoryError("nothing left")

    monkeypatch.setattr(TorchBackend, "reserve", reserve)
    driver = Driver(ParallelBackend(alone, group.WorkerGroup(1), []))
    text = driver.text()
    driver.step([Work(text, TEXT[:6])], want_logits=None)
    for _ in range(2):
        batch = driver.batch([Work(text, [0], carry=True)], want_logits=None)
        assert alone.graph_bytes > 0
        found = driver.backend.execute(batch).result()
        assert not found.failures
        assert found.max_tokens is None
        assert len(alone.graphs) == 1
        free[0] = alone.step_bytes(batch)
    del asked[:]
    driver.step([Work(text, [0], carry=True)], want_logits=None)
    assert asked == []
    alone.graphs.forget()
    assert list(driver.step([Work(text, [0], carry=True)], want_logits=None).failures) == [0]  # they are made anew


def test_a_rank_that_finds_no_memory_when_it_measures_says_so(scarce: Scarce, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for it within the step and hears only that it is gone."""
    monkeypatch.setattr(TorchBackend, "measure_room", lambda first, *_: first.ranks[0].sum(torch.ones(3)))
    with pytest.raises(InsufficientMemoryError, match=r"^rank 1: a step finds no memory$"):
        scarce.backend.measure_room(EngineConfig(max_model_len=64), 0.9)
