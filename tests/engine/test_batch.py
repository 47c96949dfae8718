"""The kept batch of decoding sequences equals one built anew, at every step; and it is kept."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from support.answers import Answers, ask, make_engine, run
from support.fake_backend import VOCAB, FakeBackend
from tuili.backend import Batch
from tuili.engine.batch import BatchBuilder, build_batch
from tuili.engine.sequence import Chunk

LONG = [(7 * i + 3) % VOCAB for i in range(75)]


def _assert_same(found: Any, expected: Any) -> None:
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "sampling":
            _assert_same(a, b)
        elif field.name == "block_tables":
            width = min(a.shape[2], b.shape[2])  # each has spare entries
            assert np.array_equal(a[:, :, :width], b[:, :, :width])
            assert (a[:, :, width:] == -1).all()
        else:
            assert np.array_equal(a, b, equal_nan=getattr(a, "dtype", None) == np.float32), field.name
            assert not isinstance(a, np.ndarray) or a.flags.aligned, field.name


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Checks every batch against its slow twin; True for each that was the kept one."""
    found: list[bool] = []
    build = BatchBuilder.build
    last: list[Batch] = []

    def checked(builder: BatchBuilder, chunks: list[Chunk]) -> Batch:
        blocks = builder._blocks
        copies = list(blocks._copies)
        batch = build(builder, chunks)
        expected = build_batch(chunks, blocks.tables, blocks.block_size, np.array(copies, np.int32).reshape(-1, 3))
        _assert_same(batch, expected)
        found.append(bool(last) and last[-1] is batch)
        last.append(batch)
        return batch

    monkeypatch.setattr(BatchBuilder, "build", checked)
    return found


@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize("windows", [(None,), (20,), (None, 17)])
def test_decoding_keeps_one_batch(windows: tuple[int | None, ...], is_asynchronous: bool, kept: list[bool]) -> None:
    requests = [ask(f"r{i}", LONG[: 9 + i], max_tokens=60, logprobs=i, temperature=0.5, seed=i) for i in range(4)]
    run(make_engine(FakeBackend(windows=windows, is_asynchronous=is_asynchronous)), requests)
    assert kept == [False, False, *[True] * 58]


def test_a_batch_outgrown_by_its_contexts_is_built_anew(kept: list[bool]) -> None:
    run(make_engine(max_model_len=256), [ask("r", LONG[:9], max_tokens=200)])
    assert 1 <= kept[2:].count(False) <= 3


def test_whatever_comes_between_is_noticed(kept: list[bool]) -> None:
    engine, answers = make_engine(blocks=12, max_num_seqs=5, max_num_batched_tokens=24), Answers()
    sampling: list[dict[str, object]] = [
        {},
        {"presence_penalty": 0.5},
        {"min_tokens": 9, "stop_token_ids": [3]},
        {"n": 3, "temperature": 1.0},
        {"prompt_logprobs": 2},
        {"logit_bias": {5: 1.0}},
    ]
    for i in range(18):
        engine.add(ask(f"r{i}", LONG[i : i + 11 + i], max_tokens=8 + 3 * i, **sampling[i % 6]), answers)
        for _ in range(4):
            engine.step()
        if i == 8:
            engine.abort("r7")
    while engine.step():
        engine.check()
    assert kept.count(True) > 20
    assert engine.stats().num_preemptions
