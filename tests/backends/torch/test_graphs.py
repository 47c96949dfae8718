"""Steps filled up to the size of a graph, by the twin that runs the work again instead of a graph: the eager bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Text, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions, Batch, StepResult
from tuili.backends import load_backend
from tuili.backends.torch import graphs as graphs_module
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import CudaCapture, decode_arrays, repeat
from tuili.backends.torch.step import Uploader
from tuili.models.spec import ModelSpec

OPTIONS = BackendOptions(max_model_len=96, device="cpu", deterministic=True)
PROMPTS = ([1, 5, 9], [7] * 20, [3, 1, 4, 1, 5, 9, 2, 6], [99, 2])
ROWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 7, "top_k": 20, "top_p": 0.9},
    {"bias": {5: 3.0}},
    {"history": {2: 1, 9: 3}, "repetition_penalty": 1.4, "temperature": 0.7},
]
WINDOWED = (layer(), layer(sliding_window=20))


def made(spec: ModelSpec, capture: Any = repeat, **options: Any) -> TorchBackend:
    """With graphs, or without where capture is None."""
    backend = load_backend("torch", spec, random_weights(spec), replace(OPTIONS, **options))
    assert isinstance(backend, TorchBackend)
    assert backend.graphs is None
    if capture is not None:
        backend.graphs = backend.captured_by(capture)
    return backend


def prompted(driver: Driver, count: int = len(PROMPTS)) -> list[Text]:
    texts = [driver.text() for _ in range(count)]
    driver.step([Work(text, prompt) for text, prompt in zip(texts, PROMPTS, strict=False)], want_logits=None)
    return texts


def decoded(backend: TorchBackend, num_steps: int, **changes: Any) -> list[StepResult]:
    """Steps of carried tokens, in which ever fewer texts take part."""
    driver = Driver(backend)
    texts = prompted(driver)
    results = []
    for i in range(num_steps):
        going = texts[: max(len(texts) - i // 3, 1)]
        rows = {name: value[: len(going)] for name, value in changes.items()}
        sampling = sampling_arrays(rows.pop("rows", [{}] * len(going)))
        works = [Work(text, [0], carry=True) for text in going]
        results.append(driver.step(works, want_logits=None, sampling=sampling, **rows))
    return results


def assert_same(found: Sequence[StepResult], expected: Sequence[StepResult]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for field in ("token_ids", "logprobs", "ranks", "top_ids", "top_logprobs", "sampler_state"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)
            assert getattr(ours, field).dtype == getattr(theirs, field).dtype


@pytest.mark.parametrize(
    "changes", [{}, {"rows": ROWS}, {"num_logprobs": np.array([-1, 0, 3, 2], np.int32)}], ids=["plain", "drawn", "said"]
)
@pytest.mark.parametrize("cache", ["auto", "int8"])
@pytest.mark.parametrize("layers", [(), WINDOWED], ids=["full", "windowed"])
def test_a_step_filled_up_is_the_eager_one(
    layers: Any, cache: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "CONTEXT_LENS", (16, 32))
    spec = decoder(*layers)
    backend = made(spec, kv_cache_dtype=cache)
    assert_same(decoded(backend, 16, **changes), decoded(made(spec, None, kv_cache_dtype=cache), 16, **changes))
    assert backend.graphs is not None
    assert len(backend.graphs) == 4  # 4 rows, which 3 share, 2 and 1 with 32 positions; 1 with 16


def test_a_graph_is_made_once_and_runs_again() -> None:
    made_for, runs = [], []

    def capture(work: Any) -> Any:
        made_for.append(work)
        replay = repeat(work)
        return lambda: runs.append(1) or replay()

    decoded(made(decoder(), capture), 9)
    assert len(made_for) == 2
    assert len(runs) == 9


def test_trying_a_graph_leaves_no_trace() -> None:
    backend = made(decoder())
    driver = Driver(backend)
    texts = prompted(driver, 3)
    before = [layer.keys.clone() for layer in backend._cache.layers], backend._last_tokens.clone()
    batch = driver.batch([Work(text, [0], carry=True) for text in texts], want_logits=None)
    assert backend.graphs is not None
    with torch.inference_mode():
        assert backend.graphs._captured(batch, 4, 96, 6) is not None
    for layer_cache, keys in zip(backend._cache.layers, before[0], strict=True):
        assert torch.equal(layer_cache.keys, keys)
    assert torch.equal(backend._last_tokens[:-1], before[1][:-1])


def not_decodes(driver: Driver, texts: list[Text]) -> list[Batch]:
    works = [Work(text, [0], carry=True) for text in texts]
    fresh = driver.text()
    return [
        driver.batch([*works, Work(fresh, [1, 2, 3])], want_logits=None),
        driver.batch(works),
        driver.batch(works, want_logits=None, targets=np.array([-1, 4], np.int32)),
        driver.batch(works, want_logits=None, copies=[(0, 1, 2)]),
        driver.batch(works, want_logits=None, want_hidden=True),
        driver.batch([Work(texts[0], [0], 1), Work(texts[1], [0], 0)], want_logits=None),
        driver.batch([Work(texts[0], [0])] * 2, want_logits=None, sample_rows=np.zeros(2, np.int32)),
    ]


def test_other_steps_are_no_graphs() -> None:
    backend = made(decoder())
    driver = Driver(backend)
    texts = prompted(driver, 2)
    assert backend.graphs is not None
    for batch in not_decodes(driver, texts):
        assert backend.graphs.run(batch, 16) is None
    assert len(backend.graphs) == 0


def test_more_rows_than_the_largest_graph_has_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "NUM_ROWS", (1, 2))
    backend = made(decoder())
    assert_same(decoded(backend, 9), decoded(made(decoder(), None), 9))
    assert backend.graphs is not None
    assert len(backend.graphs) == 1


def test_a_large_vocabulary_has_smaller_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "MAX_GRAPH_LOGIT_BYTES", 4 * 101 * 9)
    backend = made(decoder())
    assert backend.graphs is not None
    assert backend.graphs._num_rows == [1, 2, 4, 8]


def test_a_capture_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def capture(work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING, logger="tuili.backends.torch"):
        found = decoded(made(decoder(), capture), 9)
    assert_same(found, decoded(made(decoder(), None), 9))
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph for 4 sequences: steps without one are slower"
    ]


def test_a_graph_without_memory_is_told_and_smaller_ones_are_still_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given_back: list[torch.device] = []
    monkeypatch.setattr(graphs_module, "release_memory", given_back.append)
    left = [torch.OutOfMemoryError("CUDA out of memory.")]

    def capture(work: Any) -> Any:
        if left:
            work()
            raise left.pop()
        return repeat(work)

    backend = made(decoder(), capture)
    with caplog.at_level(logging.WARNING, logger="tuili.backends.torch"):
        found = decoded(backend, 12)
    assert_same(found, decoded(made(decoder(), None), 12))
    assert [record.getMessage() for record in caplog.records] == [
        "no memory left for a CUDA graph of 4 sequences in up to 96 tokens: such steps are slower"
    ]
    assert given_back == [torch.device("cpu")]
    assert backend.graphs is not None
    assert len(backend.graphs) == 2  # two rows, and one: four are not tried again
    backend.graphs.forget()
    assert_same(decoded(backend, 3), found[:3])
    assert len(backend.graphs) == 1  # with another cache there may be room


def test_work_that_fails_is_waited_for_by_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[str, str]] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            waits.append((self.name, other.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("own"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        CudaCapture(torch.device("cuda", 0))(work)
    assert waits == [("side", "own"), ("own", "side")]


def test_a_pool_is_not_used_again_once_its_graphs_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has asserted then that somebody still counts it."""
    used: list[int] = []
    handles = iter(range(100))

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            pass

    class Graph:
        def replay(self) -> None:
            pass

    def captured(graph: Graph, pool: int, **options: Any) -> Any:
        used.append(pool)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", captured)
    capture = CudaCapture(torch.device("cuda", 0))
    replays = [capture(lambda: None), capture(lambda: None)]
    assert used[0] == used[1]
    replays.clear()
    capture(lambda: None)
    assert used[2] not in used[:2]


def test_a_new_cache_has_new_graphs() -> None:
    backend = made(decoder())
    first = decoded(backend, 5)
    assert backend.graphs is not None
    assert len(backend.graphs)
    driver = Driver(backend, num_blocks=40)
    assert len(backend.graphs) == 0
    del driver
    assert_same(decoded(backend, 5), first)


def test_uploads_of_a_graph_keep_their_place() -> None:
    backend = made(decoder(*WINDOWED))
    driver = Driver(backend)
    texts = prompted(driver)
    works = [Work(text, [0], carry=True) for text in texts]
    blank = decode_arrays(driver.batch(works, want_logits=None), 0, 8, 6, 77)
    assert (blank["slot_mapping"] == -1).all()
    assert (blank["block_tables"] == -1).all()
    assert not blank["seq_lens"].any()
    assert (blank["kept_slots"] == 77).all()
    uploader = Uploader(torch.device("cpu"), is_fixed=True)
    views = uploader.upload(blank)
    for _ in range(3):
        arrays = decode_arrays(driver.batch(works, want_logits=None), 4, 8, 6, 77)
        uploader.refresh(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(views[name].numpy(), array, err_msg=name)
