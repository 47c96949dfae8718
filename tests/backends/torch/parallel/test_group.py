"""Several processes as one backend: what they compute, what a lost one means, and that none stays behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import support.leaving_rank
from support.answers import Answers, ask
from support.batches import Driver, Work, sampling_arrays
from support.gguf_models import seeds
from support.random_models import decoder, random_weights
from tuili.backend import Backend, BackendOptions, Batch, StepHandle, WeightSource
from tuili.backends import load_backend
from tuili.backends.torch.parallel import ParallelBackend, collectives, group
from tuili.config import EngineConfig
from tuili.engine import turns
from tuili.engine.engine import Engine
from tuili.errors import DeviceFailureError, InsufficientMemoryError, InvalidRequestError, ModelNotFoundError
from tuili.weights.checkpoint import open_checkpoint

OPTIONS = BackendOptions(max_model_len=64, device="cpu")
NUM_TOKENS = int(os.environ.get("TUILI_TEST_NUM_TOKENS", "8"))
TEXT = np.random.default_rng(7).integers(0, 60, 40).tolist()


def loaded(path: Path, size: int, num_stages: int = 1, **changes: object) -> Backend:
    checkpoint = open_checkpoint(path)
    sizes = {"tensor_parallel_size": size, "pipeline_parallel_size": num_stages}
    options = replace(OPTIONS, source=WeightSource(str(path)), **sizes, **changes)  # type: ignore[arg-type]
    return load_backend("torch", checkpoint.spec, checkpoint.weights, options)


def pair_of(path: Path, **changes: object) -> ParallelBackend:
    backend = loaded(path, 2, **changes)
    assert isinstance(backend, ParallelBackend)
    return backend


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(seeds()["llama"].encode())
    return path


@pytest.fixture(scope="module")
def pair(tiny: Path) -> Iterator[ParallelBackend]:
    backend = pair_of(tiny)
    process_ids = backend.process_ids
    yield backend
    backend.close()
    assert not any(map(_runs, process_ids))


@pytest.fixture(scope="module")
def line(tiny: Path) -> Iterator[ParallelBackend]:
    """Two stages, whose results do not depend on what else is in a batch."""
    backend = loaded(tiny, 1, 2, deterministic=True)
    assert isinstance(backend, ParallelBackend)
    process_ids = backend.process_ids
    yield backend
    backend.close()
    assert not any(map(_runs, process_ids))


def _runs(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_two_processes_compute_what_one_does(pair: ParallelBackend, tiny: Path) -> None:
    alone = loaded(tiny, 1)
    expected = Driver(alone).logits(TEXT)
    np.testing.assert_allclose(Driver(pair).logits(TEXT, chunk=17), expected, rtol=0, atol=1e-4)
    assert pair.vocab_size == alone.vocab_size == expected.shape[1]
    assert pair.measure_room(EngineConfig(max_model_len=64), 0.9) is None  # the host's memory


def test_two_stages_in_processes_compute_what_one_does(line: ParallelBackend, tiny: Path) -> None:
    alone = loaded(tiny, 1)
    expected = Driver(alone).logits(TEXT)
    np.testing.assert_allclose(Driver(line).logits(TEXT, chunk=17), expected, rtol=0, atol=1e-5)
    assert line.vocab_size == alone.vocab_size
    assert line.weight_bytes > alone.weight_bytes / 2
    assert line.measure_room(EngineConfig(max_model_len=64), 0.9) is None
    whole, stage = alone.cache_groups(16)[0].block_bytes, line.cache_groups(16)[0].block_bytes
    assert stage == whole / 2  # of two layers


def test_what_the_ranks_are_asked_wrongly_leaves_them_as_they_were(line: ParallelBackend) -> None:
    with pytest.raises(InvalidRequestError, match="block_size must be one of"):
        line.cache_groups(17)
    assert len(line.cache_groups(16)) == 1


def test_stages_of_shared_layers_in_processes_and_the_end_of_one(tiny: Path) -> None:
    """Four processes: all write one's text, and name the one that is killed, whichever waits for whom."""
    square = loaded(tiny, 2, 2)
    assert isinstance(square, ParallelBackend)
    process_ids = square.process_ids
    found = [written(backend) for backend in (loaded(tiny, 1), square)]
    assert found[1] == found[0]
    driver = Driver(square)
    os.kill(process_ids[1], signal.SIGKILL)  # of the first stage
    with pytest.raises(DeviceFailureError, match=r"^rank \d of 4 ended"):
        driver.step([Work(driver.text(), TEXT[:3])])
    square.close()
    assert not any(map(_runs, process_ids))


def written(backend: Backend) -> list[list[int]]:
    rows = [{}, {"temperature": 0.9, "seed": 7}, {"temperature": 1.1, "seed": 11, "top_k": 20}]
    driver = Driver(backend)
    texts = [driver.text() for _ in rows]
    steps = [driver.step([Work(text, TEXT[:6]) for text in texts], sampling=sampling_arrays(rows))]
    for _ in range(6):
        steps.append(driver.step([Work(text, [0], carry=True) for text in texts], sampling=sampling_arrays(rows)))
    return [step.token_ids.tolist() for step in steps]


def test_they_write_the_same_text(pair: ParallelBackend, line: ParallelBackend, tiny: Path) -> None:
    expected, *found = [written(backend) for backend in (loaded(tiny, 1), pair, line)]
    assert found == [expected] * 2


def answered(backend: Backend) -> tuple[Answers, int]:
    """Nine answers in a cache too small for all of them; and how many steps were under way while one was waited for."""
    config = EngineConfig(
        max_model_len=64,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        block_size=16,
        kv_cache_memory_bytes=9 * backend.cache_groups(16)[0].block_bytes,
        kv_cache_dtype="auto",
    )
    engine, answers, most = Engine(backend, config), Answers(), 0
    for i in range(9):
        prompt = [*TEXT[:17], i] if i % 2 else TEXT[i : i + 20 + i]
        engine.add(
            ask(f"r{i}", prompt, seed=i, temperature=0.9 * (i % 3), max_tokens=16, ignore_eos=True, logprobs=2), answers
        )
    while engine.step():
        engine.check()
        most = max(most, 1 + len(engine._under_way))
    assert engine.stats().num_preemptions
    return answers, most


def test_groups_of_answers_that_take_turns_write_the_same(
    line: ParallelBackend, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage in a process: while one computes a group's step, the other computes another group's."""
    monkeypatch.setattr(turns, "MIN_GROUP", 1)
    sizes: list[tuple[int, int]] = []  # sequences of every step, and of those: which carry a token
    execute = line.execute

    def noting(batch: Batch) -> StepHandle:
        sizes.append((len(batch.seq_lens), int(batch.carry.sum())))
        return execute(batch)

    monkeypatch.setattr(line, "execute", noting)
    assert line.num_stages == 2
    found, most = answered(line)
    expected, alone = answered(loaded(tiny, 1, deterministic=True))
    assert (most, alone) == (2, 1)
    assert all(not carried for size, carried in sizes if size > 1)  # the last one left takes every turn
    assert len([size for size, _ in sizes if size == 2]) > 10  # of four that run
    for i in range(9):
        said = [[(d.token_ids, d.logprobs) for d in answers.deltas[f"r{i}", 0]] for answers in (found, expected)]
        assert said[0] == said[1]


def test_steps_that_nobody_waits_for_are_done_all_the_same(line: ParallelBackend) -> None:
    """As after an abort: the other stage has computed them, and the next ones come behind."""
    driver = Driver(line)
    text, other = driver.text(), driver.text()
    expected = driver.step([Work(other, TEXT[:9])], num_logprobs=np.full(1, 3, np.int32))
    for part in (TEXT[:4], TEXT[4:8]):
        line.execute(driver.batch([Work(text, part)], want_logits=None))
    line.swap_out(np.empty((0, 3), np.int32))  # behind them on every rank
    found = driver.step([Work(text, TEXT[8:9])], num_logprobs=np.full(1, 3, np.int32))
    assert found.top_logprobs.tolist() == expected.top_logprobs.tolist()


def test_a_cache_that_does_not_fit_leaves_them_as_they_were(pair: ParallelBackend) -> None:
    driver = Driver(pair)
    with pytest.raises(InsufficientMemoryError, match="MiB does not fit on cpu"):
        pair.allocate_cache([10_000_000_000])
    pair.allocate_cache([64])
    assert driver.step([Work(driver.text(), TEXT[:3])]).token_ids.min() >= 0


def test_a_killed_rank_is_named_and_breaks_the_group(tiny: Path) -> None:
    pair = pair_of(tiny)
    driver = Driver(pair)
    text = driver.text()
    driver.step([Work(text, TEXT[:3])])
    (victim,) = pair.process_ids
    os.kill(victim, signal.SIGKILL)
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(DeviceFailureError, match=r"^rank 1 of 2 ended \(signal 9\)$"):
            driver.step([Work(text, [1])])
    assert time.monotonic() - begun < 60
    pair.close()


def test_a_failure_within_a_step_breaks_the_group(tiny: Path) -> None:
    pair = pair_of(tiny)
    driver = Driver(pair)
    batch = driver.batch([Work(driver.text(), TEXT[:3])])
    with pytest.raises(DeviceFailureError, match=r"rank 1 of 2 ended \(exit code 70\)|a step failed on rank 0"):
        pair.execute(replace(batch, positions=batch.positions + 1000)).result()  # beyond the rotary tables
    with pytest.raises(DeviceFailureError):
        pair.execute(batch)
    pair.close()


def test_what_another_rank_cannot_load_is_told(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    elsewhere = WeightSource(str(tmp_path / "none.gguf"))
    options = replace(OPTIONS, tensor_parallel_size=2, source=elsewhere)
    with pytest.raises(ModelNotFoundError, match=r"rank 1: none\.gguf: no such file"):
        load_backend("torch", checkpoint.spec, checkpoint.weights, options)


def test_a_rank_that_ends_before_it_has_met_the_others_is_noticed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for it: torch would do so for half an hour."""
    monkeypatch.setattr(group, "COMMAND", (sys.executable, "-P", support.leaving_rank.__file__))
    with pytest.raises(DeviceFailureError, match=r"^rank 1 of 2 ended \(exit code 3\)$"):
        loaded(tiny, 2)


def test_who_waits_for_others_asks_whether_they_are_there(tmp_path: Path) -> None:
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise DeviceFailureError("it is gone")

    with pytest.raises(DeviceFailureError, match="it is gone"):
        collectives.join(tmp_path, "tensor", 0, 2, torch.device("cpu"), check=check)
    assert len(asked) == 3


def test_what_cannot_be_shared_is_refused_before_a_process_starts(tiny: Path) -> None:
    spec = decoder()
    weights = random_weights(spec)
    shared = replace(OPTIONS, tensor_parallel_size=2)
    with pytest.raises(InvalidRequestError, match="tensor_parallel_size must be 1 for weights that are in no file"):
        load_backend("torch", spec, weights, shared)
    with pytest.raises(InvalidRequestError, match="tensor_parallel_size must be at most 4, as a layer"):
        loaded(tiny, 63)
    with pytest.raises(InvalidRequestError, match="pipeline_parallel_size must be 1 for weights that are in no file"):
        load_backend("torch", spec, weights, replace(OPTIONS, pipeline_parallel_size=2))
    with pytest.raises(InvalidRequestError, match="pipeline_parallel_size must be 1 for the reference backend, got 2"):
        load_backend("reference", spec, weights, replace(OPTIONS, pipeline_parallel_size=2))
    with pytest.raises(InvalidRequestError, match=r"tensor_parallel_size must be an integer in \[1, 64\]"):
        replace(OPTIONS, tensor_parallel_size=65)


def test_smollm2_in_two_processes(smollm2_gguf: Path) -> None:
    """Nine heads: six here, three there. All weights are float32 in both, products are cut elsewhere."""
    prompts = [[1, 504, 3575, 282, 4649, 314], [19, 2000, 314, 253, 1790], [28, 338, 260, 1735]]
    texts = []
    logits = []
    for size in (1, 2):
        backend = loaded(smollm2_gguf, size)
        driver = Driver(backend)
        logits.append(driver.logits(prompts[0]))
        works = [Work(driver.text(), prompt) for prompt in prompts]
        steps = [driver.step(works, want_logits=False).token_ids]
        for _ in range(NUM_TOKENS - 1):
            works = [Work(work.text, [int(i)]) for work, i in zip(works, steps[-1], strict=True)]
            steps.append(driver.step(works, want_logits=False).token_ids)
        texts.append(np.array(steps).T.tolist())
        backend.close()
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=5e-4)
    assert texts[1] == texts[0]
